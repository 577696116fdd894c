"""A checkpoint's path alone gives a model that answers, for one prompt or several, and refuses what does not fit."""

import pytest
import torch
from torch import Tensor, nn
from toy import FURTHER_TURN, GOLDENS, weights

from open_flamingo.instruction_tuning.data.prompts import escape, format_prompt
from open_flamingo.instruction_tuning.inferencer import Inferencer
from open_flamingo.src.factory import MEDIA_TOKEN
from open_flamingo.src.lora import has_lora

GREEDY = {"do_sample": False, "num_beams": 1, "max_new_token": 24, "no_repeat_ngram_size": 0}
TEMPLATE = "guanaco-no-prompt"
QUESTIONS = [["red"], ["red", "blue"], [], ["blue"], ["green"]]
"""The pictures asked about, prompt by prompt; without one the question is about the sun."""
ANSWERS = ["red", "red blue", "A star.", "blue", "green"]


@pytest.fixture(scope="module")
def inferencer(toy_run) -> Inferencer:
    return Inferencer(str(toy_run / "checkpoint_0.pt"))


@pytest.fixture(scope="module")
def images(pictures) -> list[list[str]]:
    """The images of QUESTIONS."""
    return [[str(pictures / f"{color}.png") for color in colors] for colors in QUESTIONS]


def prompt(colors: list[str]) -> str:
    """The prompt of one of QUESTIONS."""
    text = MEDIA_TOKEN * len(colors) + "Which colour?" if colors else "What is the sun?"
    return format_prompt(text, TEMPLATE)


PROMPTS = [prompt(colors) for colors in QUESTIONS]
GO_ON = format_prompt("Go on until you stop.", TEMPLATE)


def test_what_was_learnt_is_answered_from_the_checkpoint_alone(inferencer, images):
    responses, texts = inferencer(PROMPTS, images, **GREEDY)
    assert responses == ANSWERS
    assert texts == [text + answer for text, answer in zip(PROMPTS, ANSWERS, strict=True)]


def test_a_batch_is_answered_like_its_prompts_one_by_one(inferencer, images):
    settings = GREEDY | {"max_new_token": 40}
    odd = [*PROMPTS, format_prompt(f"Look: {MEDIA_TOKEN} and what else is on it, please?", TEMPLATE)]
    paths = [*images, images[0]]
    single = [inferencer(text, its_images, **settings)[0][0] for text, its_images in zip(odd, paths, strict=True)]
    assert inferencer(odd, paths, **settings)[0] == single


def test_a_response_ends_where_the_model_goes_on_with_a_further_turn(inferencer):
    ids = torch.tensor([inferencer.turns.prompt([GO_ON])])
    eos = inferencer.tokenizer.eos_token_id
    raw: Tensor = inferencer.model.generate(None, ids, max_new_tokens=40, do_sample=False, eos_token_id=eos)
    assert inferencer.tokenizer.decode(raw[0, ids.shape[1] :], skip_special_tokens=True) == FURTHER_TURN
    assert inferencer(GO_ON, **(GREEDY | {"max_new_token": 40})) == (["I stop."], [f"{GO_ON}I stop."])


def test_a_response_ends_at_the_text_that_splits_responses(inferencer):
    assert inferencer(GO_ON, **GREEDY, response_split="stop")[0] == ["I"]


def test_prompts_without_images_need_no_list_of_images(inferencer):
    assert inferencer([PROMPTS[2], PROMPTS[2]], **GREEDY)[0] == ["A star.", "A star."]


@pytest.mark.parametrize("num_beams", [1, 3])
def test_sampling_follows_the_seed(inferencer, images, num_beams):
    drawn = []
    for _ in range(2):
        torch.manual_seed(7)
        drawn.append(inferencer(PROMPTS[:2], images[:2], num_beams=num_beams, max_new_token=8, temperature=3.0))
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(("tokens", "count"), [(1, 0), (0, 1), (1, 2), (2, 1)])
def test_a_prompt_whose_image_tokens_and_images_differ_in_number_is_refused(inferencer, images, tokens, count):
    with pytest.raises(ValueError, match=f"the prompt holds {tokens} <image> for {count} images"):
        inferencer(prompt(["red"] * tokens), images[0] * count, **GREEDY)


def test_an_image_token_in_a_users_text_is_text(inferencer, images):
    text = escape("Which colour is <image> in <|endofchunk|>?")
    (ids,) = [inferencer.encode(format_prompt(f"{MEDIA_TOKEN}{text}", TEMPLATE), images[0]).ids]
    assert ids.count(inferencer.model.media_token_id) == 1
    assert inferencer.model.eoc_token_id not in ids
    assert "<image> in <|endofchunk|>?" in inferencer.tokenizer.decode(ids)


def test_a_prompt_is_not_answered_with_the_images_of_another(inferencer, images):
    with pytest.raises(ValueError, match="the prompt holds 1 <image> for 2 images"):
        inferencer([prompt(["red"]), prompt(["red", "blue"])], [images[1], images[0]], **GREEDY)


def test_a_missing_image_is_refused_by_name(inferencer):
    with pytest.raises(ValueError, match=r"image nowhere\.png does not exist"):
        inferencer(prompt(["red"]), ["nowhere.png"], **GREEDY)


def test_prompts_and_lists_of_images_of_different_number_are_refused(inferencer, images):
    message = "^5 prompts were given with 4 lists of images: give one list for each$"
    with pytest.raises(ValueError, match=message):
        inferencer(PROMPTS, images[:-1], **GREEDY)


def test_nothing_of_the_model_trains(inferencer):
    assert not inferencer.model.training
    assert not any(parameter.requires_grad for parameter in inferencer.model.parameters())


def test_a_checkpoint_of_weights_alone_needs_the_parts_named(toy_run, tower, tiny_lm, tmp_path, images):
    path = tmp_path / "weights.pt"
    torch.save(weights(toy_run), path)
    with pytest.raises(ValueError, match=r"weights\.pt does not say which model it belongs to: name the parts"):
        Inferencer(str(path))
    tuning = toy_run.parent / "tuning.json"
    named = Inferencer(str(path), str(tiny_lm), str(tuning), str(tower), cross_attn_every_n_layers=2)
    assert named(PROMPTS, images, **GREEDY)[0] == ANSWERS


def test_no_model_at_all_is_refused():
    with pytest.raises(ValueError, match="name a checkpoint, or at least a language model"):
        Inferencer()


def test_half_precision_answers_too(toy_run, images):
    inferencer = Inferencer(str(toy_run / "checkpoint_0.pt"), precision="bf16")
    linear = [m for m in inferencer.model.modules() if isinstance(m, nn.Linear)]
    assert {module.weight.dtype for module in linear} == {torch.bfloat16}
    assert inferencer(PROMPTS, images, **GREEDY)[0] == ANSWERS


def test_adapters_are_merged_in_fp32_alone_and_score_the_same(toy_run, inferencer, images):
    path = str(toy_run / "checkpoint_0.pt")
    half, with_adapters = (Inferencer(path, precision=precision) for precision in ("bf16", "amp_bf16"))
    assert [has_lora(each.model) for each in (inferencer, half, with_adapters)] == [False, True, True]
    with_adapters.precision = "fp32"
    scores = [each.score(PROMPTS[1], images[1], ANSWERS) for each in (inferencer, with_adapters)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


def test_compiled_layers_give_the_same_answers(toy_run, inferencer, images):
    compiled = Inferencer(str(toy_run / "checkpoint_0.pt"), compile=True)
    assert compiled(PROMPTS[:2], images[:2], **GREEDY) == inferencer(PROMPTS[:2], images[:2], **GREEDY)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


def test_the_first_version_is_a_switch_away(toy_run, tower, tmp_path, pictures):
    """Its mask and token ids; LLaMA's are 0, 1 and 2."""
    v1 = Inferencer(None, str(GOLDENS / "llama" / "lm"), None, str(tower), v1=True)
    assert (v1.model.media_attention, v1.model.stop_token_id) == ("next", 2)
    ids = (v1.tokenizer.pad_token_id, v1.tokenizer.bos_token_id, v1.tokenizer.eos_token_id)
    assert ids == (0, 1, 2)
    images = [str(pictures / "red.png")]
    (response,), _ = v1("<image>What?", images, num_beams=1, do_sample=False, max_new_token=4)
    assert isinstance(response, str)


def test_released_models_have_a_block_every_four_layers_unless_said_otherwise(tower):
    parts = (None, str(GOLDENS / "llama" / "lm"), None, str(tower))
    assert len(Inferencer(*parts).model.gated_cross_attn_layers) == 1
    assert len(Inferencer(*parts, cross_attn_every_n_layers=2).model.gated_cross_attn_layers) == 2


@pytest.mark.parametrize("damage", ["cut", "code", "nan"])
def test_a_damaged_checkpoint_ends_in_one_sentence_that_names_it(toy_run, tmp_path, damage):
    path = tmp_path / "damaged.pt"
    content = torch.load(toy_run / "checkpoint_0.pt", weights_only=True)
    if damage == "nan":
        content["model_state_dict"]["perceiver.latents"][0, 0] = torch.nan
    torch.save(content | ({"code": Inferencer} if damage == "code" else {}), path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"checkpoint .*damaged\.pt (is damaged|holds Python objects)") as refusal:
        Inferencer(str(path))
    assert "\n" not in str(refusal.value)
