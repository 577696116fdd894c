"""Requests that mean no good, and the files that they are after."""

import base64
import gzip
import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from servers import MODEL

SECRET = "the-secret-that-nobody-reads"
MARK = "xyzzy"
"""Stands in what a client sends, and in no answer."""
CHAT, CLEVER = "/v1/chat/completions", "/clever_flamingo"
JSON = {"Content-Type": "application/json"}
MOST_BODY = 8 * 2**20
"""Bytes of a request to the server of these tests."""


@dataclass(frozen=True)
class Place:
    """Where a server is asked: the folder that it may read, with a secret beside it, and a port that it may not use."""

    folder: Path
    port: int

    @property
    def secret(self) -> Path:
        return self.folder.parent / "secret.png"


@dataclass(frozen=True)
class Hostile:
    """A request, and the status that it deserves."""

    name: str
    status: int
    body: Callable[[Place], bytes | str]
    path: str = CHAT
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=lambda: JSON)


def furnish(folder: Path) -> None:
    """Put pictures, ways out, and what is no file into a folder, and a secret beside it."""
    (folder / "more").mkdir(parents=True)
    Image.new("RGB", (9, 9), "red").save(folder / "red.png")
    (folder.parent / "secret.png").write_text(SECRET)
    (folder.parent / "private").mkdir()
    Image.new("RGB", (9, 9), "blue").save(folder.parent / "private" / "blue.png")
    (folder / "link.png").symlink_to(folder.parent / "private" / "blue.png")
    (folder / "linked").symlink_to(folder.parent / "private")
    (folder / "dangling.png").symlink_to(folder.parent / "nothing.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "note.txt").write_text(SECRET)
    os.mkfifo(folder / "pipe.png")


def chat(*parts: Any, **fields: Any) -> str:
    """The body of a chat with one message, of texts and parts, and of further fields in place of the usual ones."""
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    usual = {"model": MODEL, "messages": [{"role": "user", "content": content or "Hello"}], "max_tokens": 4}
    return json.dumps(usual | fields)


def image(url: Any) -> dict[str, Any]:
    """The part of a message that is an image."""
    return {"type": "image_url", "image_url": {"url": url}}


def clever(*paths: Any, prompt: str | None = None, **args: Any) -> str:
    """The body of a request as of 2023, with a place for each image."""
    text = "<image>" * len(paths) + "What is it?" if prompt is None else prompt
    return json.dumps({"content_lst": {"prompt": text, "imgpaths": list(paths), "args": args}, "typ": "None"})


def data_url(data: bytes, kind: str = "image/png") -> str:
    """A file as it stands in a request."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


# files


def paths() -> list[Hostile]:
    """Paths that lead out of the folder, or to what is no file."""
    wanted: dict[str, Callable[[Place], str]] = {
        "absolute path": lambda place: str(place.secret),
        "absolute path of nothing": lambda place: str(place.secret.with_name(f"{MARK}.png")),
        "up through the folder": lambda place: f"{place.folder}/../secret.png",
        "up and in again": lambda place: f"{place.folder}/../private/../{place.folder.name}/red.png",
        "up from the root": lambda place: f"/{'../' * 20}etc/passwd",
        "up from where the server runs": lambda _: "../../../../../../etc/passwd",
        "encoded": lambda place: f"{place.folder}/%2e%2e/secret.png",
        "doubly encoded": lambda place: f"{place.folder}/%252e%252e%252fsecret.png",
        "backslashes": lambda place: f"{place.folder}\\..\\secret.png",
        "overlong UTF-8": lambda place: f"{place.folder}/\u00c0\u00ae\u00c0\u00ae/secret.png",
        "null byte": lambda place: f"{place.folder}/red.png\0.txt",
        "link to a file outside": lambda place: f"{place.folder}/link.png",
        "link to a folder outside": lambda place: f"{place.folder}/linked/blue.png",
        "link to nothing outside": lambda place: f"{place.folder}/dangling.png",
        "link to a device": lambda place: f"{place.folder}/zero.png",
        "device": lambda _: "/dev/zero",
        "environment": lambda _: "/proc/self/environ",
        "memory": lambda _: "/proc/self/mem",
        "own folder in proc": lambda place: f"/proc/self/root{place.folder}/red.png",
        "pipe": lambda place: f"{place.folder}/pipe.png",
        "folder": lambda place: str(place.folder),
        "folder in the folder": lambda place: f"{place.folder}/more",
        "neighbour of the same beginning": lambda place: f"{place.folder}-{MARK}/red.png",
        "home": lambda _: "~/.ssh/id_rsa",
        "endless name": lambda place: f"{place.folder}/{MARK * 20_000}",
        "lone surrogate in a path": lambda place: f"{place.folder}/\ud800.png",
        "line breaks in a path": lambda place: f"{place.folder}/a\r\nSet-Cookie: {MARK}=1",
        "text file": lambda place: f"{place.folder}/note.txt",
        "no path": lambda _: "",
        "file://": lambda place: f"file://{place.secret}",
        "file:// in the folder": lambda place: f"file://{place.folder}/red.png",
        "FILE:": lambda place: f"FILE:{place.secret}",
    }
    by_path = [Hostile(name, 400, lambda place, of=of: clever(of(place)), CLEVER) for name, of in wanted.items()]
    return [*by_path, Hostile("path in a chat", 400, lambda place: chat(image(str(place.secret))))]


# the network

HOSTS = (
    *("127.0.0.1", "localhost", "LOCALHOST.", "[::1]", "0.0.0.0", "[::]", "127.1", "127.9.9.9", "0"),
    *("2130706433", "0x7f000001", "0x7f.0.0.1", "017700000001", "0177.0.0.1", "[::ffff:127.0.0.1]"),
    *("[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "user:word@127.0.0.1"),
    *("8.8.8.8@127.0.0.1", "127.0.0.1%00.example", "127.0.0.1\t", "\u2460\u2461\u2466.0.0.1", "127.0.0.1#@8.8.8.8"),
)
"""Names of this machine."""


def urls() -> list[Hostile]:
    """URLs of this machine and of what clouds have beside it, and of other schemes."""
    own = [
        Hostile(f"http://{host!r}", 400, lambda place, host=host: chat(image(f"http://{host}:{place.port}/{MARK}.png")))
        for host in HOSTS
    ]
    others = {
        "https of this machine": lambda place: f"https://127.0.0.1:{place.port}/{MARK}",
        "metadata of a cloud": lambda _: "http://169.254.169.254/latest/meta-data/",
        "metadata of a cloud in IPv6": lambda _: "http://[fd00:ec2::254]/latest/meta-data/",
        "no host": lambda _: f"http:///{MARK}",
        "no port": lambda _: f"http://127.0.0.1:99999/{MARK}",
        "half an address": lambda _: "http://[::1/",
        "line breaks in a URL": lambda place: f"http://127.0.0.1:{place.port}/ HTTP/1.1\r\nHost: {MARK}\r\n\r\n",
        "gopher": lambda place: f"gopher://127.0.0.1:{place.port}/_{MARK}",
        "ftp": lambda place: f"ftp://127.0.0.1:{place.port}/{MARK}",
        "javascript": lambda _: f"javascript:alert('{MARK}')",
        "blob": lambda _: f"blob:{MARK}",
    }
    return [*own, *(Hostile(name, 400, lambda place, of=of: chat(image(of(place)))) for name, of in others.items())]


# images


def encoded(format: str = "PNG", size: tuple[int, int] = (64, 64), **options: Any) -> bytes:
    """A picture of noise as a file."""
    file = io.BytesIO()
    Image.effect_noise(size, 90).convert("RGB").save(file, format, **options)
    return file.getvalue()


def png(width: int, height: int, lines: int) -> bytes:
    """A picture that says to be so large, and has so many of its lines."""
    pack = zlib.compressobj(9)
    data = b"".join(pack.compress(bytes(1 + 3 * width)) for _ in range(lines)) + pack.flush()
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def tiff(width: int, height: int, *tile: int) -> bytes:
    """A picture that says to be so large, in one strip or in tiles so large."""
    data = zlib.compress(bytes(99))
    tags = {256: width, 257: height, 258: 8, 259: 8, 262: 1, 277: 1}
    tags |= {322: tile[0], 323: tile[0], 324: 0, 325: len(data)} if tile else {273: 0, 278: height, 279: len(data)}
    start = 8 + 2 + 12 * len(tags) + 4
    tags |= {324: start} if tile else {273: start}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


def resized(data: bytes, at: int, layout: str, *size: int) -> bytes:
    """A file whose head says another size."""
    return data[:at] + struct.pack(layout, *size) + data[at + struct.calcsize(layout) :]


def scans() -> bytes:
    """A JPEG that draws itself two thousand times."""
    file = io.BytesIO()
    Image.new("L", (2000, 2000)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    return data[:-2] + 2000 * data[data.rindex(b"\xff\xda") : -2] + data[-2:]


def pictures() -> list[Hostile]:
    """What is no image, or a much larger one than it seems."""
    jpeg = encoded("JPEG")
    files = {
        "PNG of 900 million pixels": png(30_000, 30_000, 1000),
        "PNG of all pixels there can be": png(2**31 - 1, 2**31 - 1, 0),
        "GIF of 4 billion pixels": resized(encoded("GIF"), 6, "<HH", 65_535, 65_535),
        "BMP of 4 billion pixels": resized(encoded("BMP"), 18, "<ii", 65_535, 65_535),
        "JPEG of 4 billion pixels": resized(jpeg, jpeg.index(b"\xff\xc0") + 5, ">HH", 65_500, 65_500),
        "TIFF of 10 billion pixels": tiff(100_000, 100_000),
        "TIFF with one huge tile": tiff(1, 1, 40_000),
        "JPEG of countless scans": scans(),
        **{f"truncated {format}": encoded(format)[:-999] for format in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")},
        "GIF with a script": b"GIF89a/*" + b"*/=1;alert('" + MARK.encode() + b"')//",
        "ZIP before a PNG": b"PK\x03\x04" + encoded(),
        "script before a JPEG": f"<script>{MARK}</script>".encode() + jpeg,
        "empty image": b"",
        "SVG": f"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/>{MARK}</svg>".encode(),
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
        "PDF": b"%PDF-1.7\n",
        "TAR": encoded("PPM"),
    }
    urls = {
        "HTML": data_url(f"<b>{MARK}</b>".encode(), "text/html"),
        "SVG by its type": data_url(b"<svg/>", "image/svg+xml"),
        "base64 that is none": f"data:image/png;base64,{MARK}!",
        "base64 cut short": data_url(encoded())[:-3],
        "base64 with a line break": data_url(encoded()).replace("A", "A\n", 1),
        "data URL without base64": "data:image/png,%89PNG",
        "data URL without anything": "data:",
        "image larger than it may be": data_url(bytes(2**20 + 1)),
        "lone surrogate in a data URL": "data:image/png;base64,\ud800AAA",
    }
    urls |= {name: data_url(data) for name, data in files.items()}
    return [Hostile(name, 400, lambda _, url=url: chat("What is it?", image(url))) for name, url in urls.items()]


# bodies


def bodies() -> list[Hostile]:
    """What is no request, in its bytes, its JSON or its types."""
    texts: dict[str, bytes | str] = {
        "no body": b"",
        "not JSON": f"{MARK}=1",
        "JSON cut short": chat()[:-1],
        "JSON with more behind it": chat() + MARK,
        "deep arrays": "[" * 200_000,
        "deep objects": '{"a":' * 100_000,
        "deep value of a known field": f'{{"model": "{MODEL}", "messages": {"[" * 900 + "]" * 900}}}',
        "long number": f'{{"model": "{MODEL}", "seed": {"9" * 100_000}}}',
        "invalid UTF-8": chat("\u00e9").encode().replace(rb"\u00e9", b"\xff\xfe"),
        "UTF-16": chat(MARK).encode("utf-16") + b"\0",
        "compressed": gzip.compress(chat().encode()),
        "array": "[]",
        "null": "null",
        "key twice": chat()[:-1] + f', "model": ["{MARK}"]}}',
        "no model": json.dumps({"messages": []}),
        "no messages": chat(messages=[]),
        "null messages": chat(messages=None),
        "messages that are a text": chat(messages=MARK),
        "message that is a text": chat(messages=[MARK]),
        "message without content": chat(messages=[{"role": "user"}]),
        "unknown role": chat(messages=[{"role": MARK, "content": "Hello"}]),
        "tool's message": chat(messages=[{"role": "tool", "content": MARK}]),
        "assistant's message last": chat(messages=[{"role": "assistant", "content": MARK}]),
        "system's message alone": chat(messages=[{"role": "system", "content": MARK}]),
        "unknown part": chat({"type": MARK, MARK: 1}),
        "audio": chat({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}),
        "image without a URL": chat({"type": "image_url", "image_url": {}}),
        "image that is a number": chat(image(7)),
        "tag of images in a text": chat(f"<img_path>/etc/{MARK}<img_path> what is it?"),
        "lone surrogate in a text": chat(f"{MARK}\ud800"),
        "stream that is a text": chat(stream=MARK),
        "stream options that are a list": chat(stream=True, stream_options=[MARK]),
        "tools": chat(tools=[{"type": "function", "function": {"name": MARK}}]),
        "17 images": chat(*[image(data_url(encoded()))] * 17),
        "thousands of images": chat(*[image("data:,")] * 20_000),
        "thousands of messages": chat(messages=[{"role": "user", "content": MARK}] * 50_000),
        "thousands of stop strings": chat(stop=[MARK] * 50_000),
        "empty stop string": chat(stop=[""]),
        "long stop string": chat(stop=MARK * 100_000),
        "long prompt": chat("word " * 1_000_000),
        "long word": chat("a" * 4_000_000),
    }
    made = [Hostile(name, 400, lambda _, text=text: text) for name, text in texts.items()]
    long = json.dumps({"a": [0] * (MOST_BODY // 2)})
    wrong = json.dumps({MARK: 1})
    return [
        *made,
        Hostile("large JSON", 413, lambda _: long),
        Hostile("JSON as large as may be", 400, lambda _: long[: MOST_BODY - 2] + "]}"),
        Hostile("unknown model", 404, lambda _: chat(model=f"{MARK}/../../etc/passwd")),
        Hostile("other fields", 400, lambda _: wrong, CLEVER),
        Hostile("more images than places", 400, lambda _: clever(data_url(encoded()), prompt=MARK), CLEVER),
        Hostile("more places than images", 400, lambda _: clever(prompt=f"<image>{MARK}"), CLEVER),
        Hostile("image paths that are a text", 400, lambda _: clever().replace("[]", f'"{MARK}"'), CLEVER),
        Hostile("thousands of places", 400, lambda _: clever(prompt="<image>" * 100_000), CLEVER),
    ]


def parameters() -> list[Hostile]:
    """Numbers that are none, or too large or small."""
    literals = ("NaN", "Infinity", "-Infinity", "1e999", "-1", "1e400", f'"{MARK}"', "[1]", "{}", "true")
    chat_names = ("temperature", "top_p", "max_tokens", "n")
    wrong = [(name, literal, CHAT, chat()) for name in chat_names for literal in literals]
    wrong += [
        (name, literal, CHAT, chat())
        for name, literals in {
            "max_tokens": ("0", "100000000000000000000", "1025", "4.5"),
            "n": ("0", "129", "9"),
            "num_beams": ("0", "100000", "17", "NaN"),
            "top_k": ("-5", "2.5", "1e20"),
            "length_penalty": ("NaN", "1e300"),
            "seed": ("1.5", str(2**70)),
            "temperature": ("1e30",),
        }.items()
        for literal in literals
    ]
    args = ("max_new_token", "num_beams", "temperature", "top_p")
    wrong += [(name, literal, CLEVER, clever(x=0)) for name in args for literal in ("NaN", "-1", f'"{MARK}"')]
    return [
        Hostile(
            f"{name} {literal[:9]}{' of 2023' * (path == CLEVER)}",
            400,
            lambda _, name=name, literal=literal, path=path, body=body: _with(body, name, literal, path),
            path,
        )
        for name, literal, path, body in wrong
    ]


def _with(body: str, name: str, literal: str, path: str) -> str:
    """A body with a parameter as it is written, which JSON may not allow."""
    if path == CLEVER:
        return body.replace('"x": 0', f'"{name}": {literal}')
    return body[:-1] + f', "{name}": {literal}}}'


def routes() -> list[Hostile]:
    """Paths that there are not, and methods that they have not."""
    missing = (
        *("/etc/passwd", "/../../../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/v1/models/../../api.py", "/docs"),
        *(f"/v1/models/{MARK}", "/static/..%2f..%2fapi.py", "//etc/passwd", "/%00", f"/{MARK * 2000}", "/.git/config"),
    )
    wrong = (
        ("GET", CHAT),
        ("PUT", CHAT),
        ("DELETE", "/v1/models"),
        ("TRACE", "/"),
        ("PATCH", CLEVER),
    )
    return [
        *(Hostile(f"path {path[:30]}", 404, lambda _: b"", path, "GET") for path in missing),
        *(Hostile(f"{method} {path}", 405, lambda _: chat(), path, method) for method, path in wrong),
        Hostile("page of others", 403, lambda _: chat(), headers=JSON | {"Origin": f"http://{MARK}.example"}),
        Hostile("page of none", 403, lambda _: chat(), headers=JSON | {"Origin": "null"}),
    ]


HOSTILE = [*paths(), *urls(), *pictures(), *bodies(), *parameters(), *routes()]
