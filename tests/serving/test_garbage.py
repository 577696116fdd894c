"""What answered requests leave in memory."""

import pytest
from servers import MODEL, user
from starlette.testclient import TestClient
from tiny import no_tensor_becomes_garbage

from open_flamingo.serving.app import create_app
from open_flamingo.serving.settings import ServeSettings


@pytest.mark.parametrize("settings", [{}, {"stream": True}, {"num_beams": 3}, {"n": 2}], ids=str)
def test_the_images_of_a_request_go_with_its_answer(checkpoint, pictures, settings):
    question = user(pictures / "red.png", "Which colour?")
    body = {"model": MODEL, "messages": [question], "max_tokens": 4} | settings
    with TestClient(create_app(ServeSettings(checkpoint=str(checkpoint)))) as client, no_tensor_becomes_garbage():
        for _ in range(2):  # the first one's batch is over when the second one's begins
            assert client.post("/v1/chat/completions", json=body).is_success
