"""The API of 2023: the client of its document, and the answers that `Inferencer` gives."""

import json
import subprocess
import sys

import httpx
import pytest
from servers import data_url

from open_flamingo.instruction_tuning.data.prompts import format_prompt
from open_flamingo.src.factory import MEDIA_TOKEN

CLIENT = """import json, request

url = '0.0.0.0:1234'
content_lst = {
    'prompt': '',     # add your prompt here,
    'imgpaths': [],   # add your images here,
    'args':{
        'max_new_token':1024,
        'num_beams':1,
        'temperature':1.0,
        'top_k':20,
        'top_p':1,
        'do_sample':True,
        'length_penalty':1.0,
        'no_repeat_ngram_size':3,
    }
}
d = {"content_lst": content_lst,'typ': 'None'}
d = json.dumps(d).encode('utf8')
r = requests.post(url, data=d)
js = json.loads(r.text)

print(js['result']['response'])
"""
"""As the document has it."""
PROMPT = format_prompt(f"{MEDIA_TOKEN}Which colour?", "guanaco-no-prompt")
GREEDY = {"num_beams": 1, "do_sample": False, "max_new_token": 24}


def ask(server, prompt: str, images: list[str], args: dict | None = None, path: str = "/clever_flamingo"):
    """The response to a request as the client makes it."""
    body = {"content_lst": {"prompt": prompt, "imgpaths": images, "args": args}, "typ": "None"}
    return httpx.post(f"{server.url}{path}", content=json.dumps(body).encode(), timeout=60)


def responses(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return answer.json()["result"]["response"]


@pytest.mark.parametrize("path", ["/clever_flamingo", ""])
@pytest.mark.parametrize("is_filled_in", [False, True])
def test_the_documents_client_works(server, inferencer, pictures, path, is_filled_in):
    program = CLIENT.replace("import json, request\n", "import json, requests\n")
    program = program.replace("'0.0.0.0:1234'", repr(server.url + path))
    if is_filled_in:
        program = program.replace("'prompt': ''", f"'prompt': {PROMPT!r}")
        program = program.replace("'imgpaths': []", f"'imgpaths': [{str(pictures / 'red.png')!r}]")
        program = program.replace("'do_sample':True", "'do_sample':False")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith("[")
    if is_filled_in:
        assert done.stdout == "['red']\n"


@pytest.mark.parametrize("how", ["path", "data"])
def test_an_image_is_named_by_a_path_of_an_allowed_folder_or_sent(server, pictures, how):
    path = pictures / "blue.png"
    assert responses(ask(server, PROMPT, [str(path) if how == "path" else data_url(path)], GREEDY)) == ["blue"]


def test_drawn_answers_are_the_inferencers_own_for_the_same_seed(server, inferencer, pictures):
    args = {"max_new_token": 24, "num_beams": 1, "temperature": 3.0, "top_k": 50, "top_p": 0.95, "seed": 11}
    own, _ = inferencer(PROMPT, [str(pictures / "red.png")], **args)
    assert responses(ask(server, PROMPT, [str(pictures / "red.png")], args)) == own


@pytest.mark.parametrize("args", [None, {}, {"num_beams": None, "top_p": None, "temperature": None}], ids=str)
def test_what_is_not_said_is_as_in_the_inferencer(started, inferencer, pictures, args):
    own, _ = inferencer(PROMPT, [str(pictures / "red.png")], 16, do_sample=False)
    with started(max_new_tokens=16) as server:
        given = args and args | {"do_sample": False}
        if given is None:
            assert responses(ask(server, PROMPT, [data_url(pictures / "red.png")], given))
        else:
            assert responses(ask(server, PROMPT, [data_url(pictures / "red.png")], given)) == own


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"prompt": PROMPT}, "the prompt holds 1 <image> for 0 images"),
        ({"prompt": "x", "imgpaths": ["/etc/passwd"]}, "the prompt holds 0 <image> for 1 images"),
        ({"prompt": PROMPT, "imgpaths": ["/etc/passwd"]}, "image 1 is not a file in the folders"),
        ({"prompt": "x", "args": {"max_new_token": "many"}}, "content_lst.args.max_new_token"),
        ({"imgpaths": []}, "content_lst.prompt"),
    ],
    ids=range(5),
)
def test_what_cannot_be_answered_is_an_error_in_the_one_shape(server, content, message):
    answer = httpx.post(f"{server.url}/clever_flamingo", json={"content_lst": content})
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]
