"""Names of every origin find their parameters, and what a load did or refused to do is said."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import EXACT, FLOATS, PROMPTS, encode, random_images
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM

from open_flamingo import Flamingo
from open_flamingo.instruction_tuning.checkpoint import state_to_save
from open_flamingo.src.lora import with_lora
from open_flamingo.src.weights import add_lora, load_adapter, load_states, own_state, plain_name, saved_name

GOLDENS = Path(__file__).parents[1] / "goldens"
LATENTS = "perceiver.latents"
GATE = "lang_encoder.model.layers.3.gated_cross_attn_layer.attn_gate"
TARGETS = ["q_proj", "down_proj", "to_q", "ff.1"]


@pytest.fixture
def model(build_tiny) -> Flamingo:
    return build_tiny(every=2)[0]


@pytest.fixture
def build_adapted(build_tiny) -> Callable[..., Flamingo]:
    """Builds models with random adapters on language model and blocks; seeds change all but the frozen parts."""

    def build(seed: int, rank: int = 4, targets: list[str] = TARGETS) -> Flamingo:
        model, _, _ = build_tiny(every=2, seed=seed)
        model.vision_encoder = build_tiny(seed=0)[0].vision_encoder
        add_lora(model, LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))
        for name, parameter in model.named_parameters():
            if ".lora_B" in name:
                nn.init.normal_(parameter, std=0.3)
        return model.eval()

    return build


def own_weights(model: Flamingo) -> dict[str, Tensor]:
    """What a checkpoint of resampler, blocks and embeddings holds."""
    embedding = {"lang_encoder.model.embed_tokens.weight": model.lang_encoder.get_input_embeddings().weight}
    state = {name: tensor for name, tensor in own_state(model).items() if not name.startswith("vision_encoder.")}
    return {name: tensor.detach().clone() for name, tensor in (state | embedding).items()}


def all_weights(model: Flamingo) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@torch.no_grad()
def logits(model: Flamingo, tokenizer) -> Tensor:
    return model(random_images(len(PROMPTS), 3), **encode(tokenizer, *PROMPTS)).logits


@pytest.mark.parametrize(
    "key",
    [
        LATENTS,
        "module.perceiver.latents",
        "_orig_mod.perceiver.latents",
        "module._orig_mod.perceiver.latents",
        "_orig_mod.module.perceiver.latents",
        "perceiver._checkpoint_wrapped_module.latents",
        "_fsdp_wrapped_module.perceiver._fsdp_wrapped_module.latents",
    ],
)
def test_what_wrappers_put_into_names_is_understood(model, key):
    load_states(model, {"a.pt": {key: torch.ones(64, 64)}}, strict=False)
    assert (model.perceiver.latents == 1).all()


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("lang_encoder.old_decoder_blocks.2.mlp.up_proj.weight", "model.layers.2.decoder_layer.mlp.up_proj.weight"),
        ("lang_encoder.model.layers.2.mlp.up_proj.weight", "model.layers.2.decoder_layer.mlp.up_proj.weight"),
        ("lang_encoder.gated_cross_attn_layers.3.ff.1.weight", "model.layers.3.gated_cross_attn_layer.ff.1.weight"),
        (
            "module.lang_encoder.base_model.model.gated_cross_attn_layers.3.ff.1.weight",
            "model.layers.3.gated_cross_attn_layer.ff.1.weight",
        ),
    ],
)
def test_second_names_of_2023_are_understood(model, key, name):
    parameter = model.lang_encoder.get_parameter(name)
    load_states(model, {"a.pt": {key: torch.ones_like(parameter)}}, strict=False)
    assert (parameter == 1).all()


@pytest.mark.parametrize("layer", [".base_layer.", "."], ids=["new-peft", "old-peft"])
@pytest.mark.parametrize("adapted", [False, True])
def test_base_weights_from_any_version_of_peft_are_understood(model, build_adapted, adapted, layer):
    model = build_adapted(0) if adapted else model
    to_q = model.gated_cross_attn_layers[-1].attn.to_q
    weight = getattr(to_q, "base_layer", to_q).weight
    key = f"lang_encoder.base_model.model.model.layers.3.gated_cross_attn_layer.attn.to_q{layer}weight"
    load_states(model, {"a.pt": {key: torch.ones_like(weight)}}, strict=False)
    assert (weight == 1).all()


def test_the_output_head_of_gpt_neox_keeps_its_name_of_2023_in_files(build_tiny, tmp_path):
    tokenizer = build_tiny()[2]
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = GPTNeoXConfig(**sizes, vocab_size=len(tokenizer), tie_word_embeddings=False)
    GPTNeoXForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, _, _ = build_tiny(lm=tmp_path)
    state = {name: torch.ones_like(tensor) for name, tensor in state_to_save(model).items() if "embed" in name}
    assert set(state) == {"lang_encoder.gpt_neox.embed_in.weight", "lang_encoder.embed_out.weight"}
    assert set(load_states(model, {"a.pt": state}, strict=False).loaded) == set(state)
    assert (model.lang_encoder.get_output_embeddings().weight == 1).all()


def test_a_tied_weight_is_known_by_each_of_its_names(model):
    weight = model.lang_encoder.get_input_embeddings().weight
    for value, name in enumerate(("model.embed_tokens", "lm_head")):
        load_states(model, {"a.pt": {f"lang_encoder.{name}.weight": torch.full_like(weight, value)}}, strict=False)
        assert (weight == value).all()


def test_a_later_file_wins_under_whichever_name_it_has_a_tied_weight(model):
    weight = model.lang_encoder.get_input_embeddings().weight
    names = ("lang_encoder.model.embed_tokens.weight", "lang_encoder.lm_head.weight")
    first = {name: torch.zeros_like(weight) for name in names}
    load_states(model, {"a.pt": first, "b.pt": {names[0]: torch.ones_like(weight)}}, strict=False)
    assert (weight == 1).all()


def test_saved_names_and_loaded_names_are_one_language(build_adapted):
    names = [name for name, _ in build_adapted(0).named_parameters()]
    assert len({plain_name(saved_name(name)) for name in names}) == len(names)


class TestReport:
    def test_it_says_which_file_gave_what(self, model):
        whole = own_weights(model)
        report = load_states(model, {"a.pt": whole, "b.pt": {LATENTS: whole[LATENTS]}})
        assert report.loaded == dict.fromkeys(whole, "a.pt") | {LATENTS: "b.pt"}
        assert f"a.pt: {len(whole) - 1} tensors loaded" in str(report)
        assert "b.pt: 1 tensors loaded" in str(report)

    def test_language_model_and_tower_are_expected_to_be_absent(self, model):
        whole = own_weights(model)
        report = load_states(model, {"a.pt": whole})
        assert set(report.absent) == {name for name, _ in model.named_parameters()} - set(whole)
        assert (report.missing, report.unexpected, report.reshaped, report.ignored) == ([], {}, {}, {})

    def test_unknown_keys_are_listed_and_constants_of_2023_are_not_among_them(self, model, caplog):
        unknown, constant = "lang_encoder.nowhere.weight", "lang_encoder.gpt_neox.layers.0.decoder_layer.attention.bias"
        extra = {unknown: torch.ones(2), constant: torch.ones(1, 1, 8, 8, dtype=torch.bool)}
        report = load_states(model, {"a.pt": own_weights(model) | extra})
        assert (report.unexpected, report.ignored) == ({"a.pt": [unknown]}, {"a.pt": [constant]})
        assert f"unexpected in a.pt: {unknown}" in caplog.text

    def test_clip_whole_gives_its_image_tower_and_its_text_tower_is_ignored(self, model):
        tower = {f"vision_encoder.visual.{n}": torch.zeros_like(p) for n, p in model.vision_encoder.named_parameters()}
        text = {"vision_encoder.positional_embedding": torch.ones(3, 3), "vision_encoder.logit_scale": torch.ones(())}
        report = load_states(model, {"a.pt": own_weights(model) | tower | text})
        assert report.ignored == {"a.pt": list(text)}
        assert all((parameter == 0).all() for parameter in model.vision_encoder.parameters())

    def test_what_is_missing_is_listed_when_that_is_accepted(self, model):
        whole = own_weights(model)
        del whole[LATENTS], whole[GATE]
        assert load_states(model, {"a.pt": whole}, strict=False).missing == [LATENTS, GATE]

    def test_a_dimension_of_one_more_or_less_is_put_right_and_said(self, model):
        report = load_states(model, {"a.pt": own_weights(model) | {GATE: torch.tensor(0.25)}})
        assert report.reshaped == {GATE: (torch.Size([]), torch.Size([1]))}
        assert model.get_parameter(GATE).item() == 0.25


def without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if key != name}


REFUSALS = {
    "a resampler weight in no file": (lambda s: without(s, LATENTS), LATENTS),
    "a block weight in no file": (lambda s: without(s, GATE), GATE),
    "embeddings that train in no file": (
        lambda s: without(s, "lang_encoder.model.embed_tokens.weight"),
        "embed_tokens.weight: list the one that does",
    ),
    "another shape": (lambda s: s | {LATENTS: torch.ones(64, 32)}, r"latents has shape \(64, 32\).* is \(64, 64\)"),
    "a transposed weight": (
        lambda s: s | {"perceiver.layers.0.1.1.weight": s["perceiver.layers.0.1.1.weight"].T},
        r"\(64, 256\).* is \(256, 64\)",
    ),
    "blocks where the model has none": (
        lambda s: s | {GATE.replace("3", "0"): torch.ones(1)},
        "gated blocks where the model has none: is cross_attn_every_n_layers 1",
    ),
    "blocks of another language model": (
        lambda s: {key.replace("model.layers", "transformer.blocks"): value for key, value in s.items()},
        r"another language model, with layers lang_encoder.transformer.blocks in place of lang_encoder.model.layers",
    ),
    "blocks of another interval under their first names": (
        lambda s: s | {"lang_encoder.gated_cross_attn_layers.0.attn_gate": torch.ones(1)},
        "is cross_attn_every_n_layers 1",
    ),
    "nothing of the model": (
        lambda _: {"encoder.weight": torch.ones(2)},
        "no parameter of the model .*'encoder.weight'",
    ),
    "NaN": (lambda s: s | {LATENTS: torch.full((64, 64), torch.nan)}, "damaged: perceiver.latents holds NaN"),
    "infinity": (lambda s: s | {GATE: torch.tensor([torch.inf])}, "damaged: .*attn_gate holds NaN or infinite"),
    "one weight twice, with two values": (
        lambda s: s | {"module.perceiver.latents": torch.ones(64, 64)},
        "perceiver.latents and module.perceiver.latents are one parameter of the model, but differ",
    ),
}


@pytest.mark.parametrize(("change", "message"), REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_be_trusted_is_refused_and_changes_nothing(build_tiny, model, change, message):
    other = own_weights(build_tiny(every=2, seed=1)[0])
    before = all_weights(model)
    with pytest.raises(ValueError, match=message) as refusal:
        load_states(model, {"a.pt": change(other)})
    assert "\n" not in str(refusal.value)
    torch.testing.assert_close(all_weights(model), before, **EXACT)


def test_broken_values_are_refused_also_where_gaps_are_accepted(model):
    with pytest.raises(ValueError, match="damaged"):
        load_states(model, {"a.pt": {LATENTS: torch.full((64, 64), torch.nan)}}, strict=False)


def test_another_shape_is_left_out_where_that_is_accepted(model):
    before = model.perceiver.latents.detach().clone()
    report = load_states(model, {"a.pt": {LATENTS: torch.ones(64, 32)}}, strict=False)
    assert report.reshaped == {LATENTS: (torch.Size([64, 32]), torch.Size([64, 64]))}
    torch.testing.assert_close(model.perceiver.latents.detach(), before, **EXACT)


def test_embeddings_that_do_not_train_may_be_absent(model):
    model.requires_grad_(False)
    embedding = "lang_encoder.model.embed_tokens.weight"
    assert embedding in load_states(model, {"a.pt": without(own_weights(model), embedding)}).absent


class TestLora:
    @pytest.mark.parametrize(
        "targets", [TARGETS, ["layers.0.decoder_layer.self_attn.q_proj"]], ids=["ends", "one module"]
    )
    def test_adapters_of_a_checkpoint_come_to_a_model_without(self, build_tiny, build_adapted, targets):
        trained, (fresh, _, tokenizer) = build_adapted(1, targets=targets), build_tiny(every=2, seed=2)
        load_states(fresh, {"a.pt": all_weights(trained)})
        torch.testing.assert_close(logits(fresh, tokenizer), logits(trained, tokenizer), **EXACT)
        names = {name for name, _ in fresh.named_parameters()}
        assert names == {name for name, _ in trained.named_parameters()}

    @pytest.mark.parametrize(("rank", "alpha"), [(128, 64), (64, 64), (16, 16)])
    def test_alpha_is_that_of_the_released_models_and_said(self, model, build_adapted, caplog, rank, alpha):
        load_states(model, {"a.pt": all_weights(build_adapted(1, rank, ["q_proj"]))})
        assert model.lang_encoder.peft_config["default"].lora_alpha == alpha
        assert (
            f"LoRA of rank {rank} found in a checkpoint that does not say its alpha, which is taken to be {alpha}"
            in (caplog.text)
        )

    def test_what_trains_stays_as_it_was(self, model, build_adapted):
        before = {plain_name(name) for name, p in model.named_parameters() if p.requires_grad}
        load_states(model, {"a.pt": all_weights(build_adapted(1))})
        trained = {plain_name(name) for name, p in model.named_parameters() if p.requires_grad}
        assert trained == before

    def test_an_adapter_without_its_other_half_is_refused(self, model, build_adapted):
        state = all_weights(build_adapted(1))
        half = next(name for name in state if "lora_B" in name)
        with pytest.raises(ValueError, match=r"no checkpoint holds .*lora_B"):
            load_states(model, {"a.pt": without(state, half)})

    def test_several_ranks_ask_for_the_tuning_config(self, model, build_adapted):
        one, other = (all_weights(build_adapted(1, rank, [target])) for rank, target in ((4, "q_proj"), (8, "k_proj")))
        with pytest.raises(ValueError, match="ranks 4 to 8: give its tuning config"):
            load_states(model, {"a.pt": other | one})

    def test_adapters_loaded_before_tuning_keep_their_weights_and_take_its_alpha(
        self, model, build_tiny, build_adapted
    ):
        trained = build_adapted(1)
        load_states(model, {"a.pt": all_weights(trained)})
        add_lora(model, LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS))
        loaded = {name: tensor for name, tensor in model.state_dict().items() if ".lora_" in name}
        torch.testing.assert_close(loaded, {n: t for n, t in trained.state_dict().items() if ".lora_" in n}, **EXACT)
        assert model.gated_cross_attn_layers[0].attn.to_q.scaling == {"default": 2.0}

    @pytest.mark.parametrize(
        ("rank", "targets", "message"),
        [
            (8, TARGETS, r"lora_A.default.weight has shape \(4, 64\), the model's is \(8, 64\)"),
            (4, ["q_proj"], "down_proj.lora_A.default.weight, which the tuning config does not adapt"),
            (4, [*TARGETS, "k_proj"], "no checkpoint holds .*k_proj.lora_A"),
        ],
    )
    def test_adapters_loaded_before_a_tuning_config_of_others_are_refused(
        self, model, build_adapted, rank, targets, message
    ):
        load_states(model, {"a.pt": all_weights(build_adapted(1))})
        with pytest.raises(ValueError, match=message):
            add_lora(model, LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))


class TestPeftFolder:
    @pytest.fixture
    def folder(self, tiny_lm, tmp_path) -> str:
        """An adapter trained on the bare language model, of its names."""
        torch.manual_seed(3)
        adapted = get_peft_model(
            AutoModelForCausalLM.from_pretrained(tiny_lm), LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj"])
        )
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.3)
        adapted.save_pretrained(tmp_path / "adapter")
        return str(tmp_path / "adapter")

    def test_it_is_put_around_the_spliced_language_model(self, build_tiny, tiny_lm, folder):
        model, _, tokenizer = build_tiny(lora_weights=folder, gates=0.0)
        bare = AutoModelForCausalLM.from_pretrained(tiny_lm)
        bare.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        bare.get_input_embeddings().weight.data.copy_(model.lang_encoder.get_input_embeddings().weight)
        before = bare(**_ids(tokenizer)).logits
        expected = with_lora(bare, LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj"]))
        expected.load_adapter(folder, "default")
        torch.testing.assert_close(
            model.lang_encoder(**_ids(tokenizer)).logits, expected(**_ids(tokenizer)).logits, **FLOATS
        )
        assert (before - expected(**_ids(tokenizer)).logits).abs().max() > 0.1

    def test_names_of_a_spliced_model_are_understood_too(self, build_tiny, folder, tmp_path):
        model, _, _ = build_tiny(lora_weights=folder)
        model.lang_encoder.save_pretrained(tmp_path / "again")
        again, _, _ = build_tiny(lora_weights=str(tmp_path / "again"))
        torch.testing.assert_close(all_weights(again), all_weights(model), **EXACT)

    def test_a_folder_of_something_else_is_refused(self, build_tiny, tiny_lm, tmp_path):
        with pytest.raises(ValueError, match="not a PEFT folder"):
            build_tiny(lora_weights=str(tiny_lm))

    def test_an_adapter_of_another_language_model_is_refused(self, build_tiny, folder):
        model, _, _ = build_tiny(lm=GOLDENS / "mpt" / "lm")
        with pytest.raises(ValueError, match="adapter match no module of MptForCausalLM"):
            load_adapter(model, folder)


def _ids(tokenizer) -> dict[str, Tensor]:
    return dict(tokenizer("What is in this picture?", return_tensors="pt"))
