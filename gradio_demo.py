"""A web page to chat with a model about images, over its API: `python gradio_demo.py --help`."""

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from demo.client import Api
from demo.log import TurnLog

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self';"
    " worker-src 'self' blob:; object-src 'none'; form-action 'self'"
)
"""What browsers may fetch for the page: nothing from elsewhere, whatever an answer of the model may link to."""
EXAMPLES = """\
The demo is a page on top of the API, which holds the model. Start the API first, in another terminal:

  uvicorn api:app

then, on the same machine:

  python %(prog)s                                  # and open http://127.0.0.1:7860
  python %(prog)s --api http://127.0.0.1:1234      # an API elsewhere
  FLAMINGO_API_KEY=... python %(prog)s             # one with a key
  python %(prog)s --host 0.0.0.0 --port 80         # for others in your network: whoever reaches the page can ask
  python %(prog)s --no_log                         # keep nothing of what is asked and answered

Each exchange is a line of LOG_DIR/YYYY-MM-DD.jsonl: question, answer, parameters with the seed, time taken, and the
SHA-256 of each image as it was sent; with --log_images the images too, in LOG_DIR/images.
"""


class LocalOnly:
    """ASGI middleware that tells browsers to fetch nothing for the page from elsewhere."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Put the policy into the head of each answer."""

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = POLICY
                headers["Referrer-Policy"] = "no-referrer"
            await send(message)

        await self.app(scope, receive, send_with_policy)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page until Ctrl-C or SIGTERM; see `--help`."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.port not in range(1, 65536):
        parser.error("--port is from 1 to 65535")
    if ":" in args.host:
        parser.error("--host is a name or an IPv4 address: Gradio listens at no IPv6 address")
    key = (args.api_key or os.environ.get("FLAMINGO_API_KEY", "")).strip()
    try:
        api = Api(args.api, key or None)
        log = None if args.no_log else TurnLog(args.log_dir, keeps_images=args.log_images)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with tempfile.TemporaryDirectory(prefix="flamingo-demo-") as folder:
            serve(api, log, Path(folder), args.host, args.port)
    except KeyboardInterrupt:
        pass
    except OSError as error:
        parser.error(str(error))
    return 0


def serve(api: Api, log: TurnLog | None, folder: Path, host: str, port: int) -> None:
    """Serve the page until KeyboardInterrupt; uploads are kept in `folder`. Raises OSError where it cannot listen."""
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(folder), "HF_HUB_OFFLINE": "1"}
    # Gradio reads these when it is imported
    from demo.layout import head, theme
    from demo.page import Page

    images = folder / "images"
    images.mkdir()
    blocks = Page(api, log, images).build()
    options: dict[str, Any] = {"middleware": [Middleware(LocalOnly)]}
    try:
        blocks.launch(
            server_name=host,
            server_port=port,
            theme=theme(),
            head=head(),
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            max_file_size="20mb",
            app_kwargs=options,
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise OSError(
            f"cannot listen at {host}, port {port}: the port is taken or not allowed, or the address is not this"
            " machine's; choose another with --port or --host"
        ) from error
    sys.stdout.write(f"the demo is at {blocks.local_url}, and asks the API at {api.url}; Ctrl-C ends it\n")
    sys.stdout.flush()
    try:
        while True:
            time.sleep(3600)
    finally:
        blocks.close(verbose=False)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gradio_demo.py",
        description="A web page to chat with a model about images, over its API.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--api", default="http://127.0.0.1:8000", metavar="URL", help="where the API is (default: %(default)s)")
    add(
        "--api_key", metavar="KEY", help="its key; better in the environment, as FLAMINGO_API_KEY, where nobody sees it"
    )
    add("--host", default="127.0.0.1", help="the address to listen at (default: %(default)s, this machine only)")
    add("--port", type=int, default=7860, help="the port to listen at (default: %(default)s)")
    add("--log_dir", type=Path, default=Path("demo_logs"), help="folder of the log (default: %(default)s)")
    add("--log_images", action="store_true", help="keep the images in the log's folder too")
    add("--no_log", action="store_true", help="keep no log")
    return parser


if __name__ == "__main__":
    sys.exit(main())
