"""The app that `uvicorn api:app` serves; docs/serving.md has its settings. Nothing is loaded until it starts."""

import logging
import warnings

from transformers.utils.logging import disable_progress_bar

from open_flamingo.serving.app import create_app

warnings.simplefilter("ignore", FutureWarning)  # what libraries plan is not for the user to act on
disable_progress_bar()
logging.basicConfig(format="%(levelname)s:     %(message)s")
logging.getLogger("open_flamingo").setLevel(logging.INFO)

app = create_app()
