"""What the page looks like: its controls and where they stand; `style.css` does the rest."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import gradio as gr

from demo.chat import Parameters

STYLE = Path(__file__).with_name("style.css")
"""It goes into the page's head as it is: Gradio's own way of taking CSS loses what is meant for phones."""
SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "DejaVu Sans Mono", "monospace")
"""Fonts that are on the reader's machine: none is fetched."""
WELCOME = "### Ask about images\nAdd images to the box below, or pick examples, and write a question."
PROMPT_HINT = "What the model gets is shown here, to the letter, once a question was asked."


@dataclass(frozen=True)
class Controls:
    """All of the page that can be seen or pressed."""

    state: gr.HTML
    clear: gr.Button
    chat: gr.Chatbot
    summary: gr.HTML
    box: gr.MultimodalTextbox
    gallery: gr.Gallery
    parameters: dict[str, gr.Slider | gr.Checkbox | gr.Number]
    prompt_panel: gr.Accordion
    prompt_note: gr.HTML
    prompt: gr.Textbox


def lay_out(examples: Sequence[tuple[Path, str]]) -> Controls:
    """The controls, inside a `gr.Blocks`: the conversation, and beside it, or below it on a phone, how it is answered."""
    with gr.Row(elem_id="top"):
        gr.HTML("<h1>Instruct-Flamingo</h1>", elem_id="title", padding=False)
        state = gr.HTML(pill("wait", "looking for the API"), elem_id="state", padding=False)
        clear = gr.Button("New chat", size="sm", elem_id="clear", scale=0, min_width=0)
    with gr.Row(elem_id="main"):
        with gr.Column(elem_id="talk"):
            chat = conversation()
            summary = gr.HTML("", elem_id="summary", padding=False)
            box = question_box()
            gallery = example_strip(examples)
        with gr.Column(elem_id="side"):
            with gr.Accordion("Parameters", elem_id="parameters"):
                parameters = parameter_controls()
            with gr.Accordion("The exact prompt", open=False, elem_id="prompt-panel") as panel:
                prompt_note = gr.HTML(PROMPT_HINT, elem_id="prompt-note", padding=False)
                prompt = gr.Textbox(
                    elem_id="prompt",
                    label="The exact prompt",
                    show_label=False,
                    lines=6,
                    max_lines=16,
                    interactive=False,
                )
    return Controls(state, clear, chat, summary, box, gallery, parameters, panel, prompt_note, prompt)


def conversation() -> gr.Chatbot:
    """Where questions and answers stand; a link or a picture in an answer is never fetched, see `gradio_demo.py`."""
    return gr.Chatbot(
        elem_id="chat",
        show_label=False,
        label="Conversation",
        height="100%",
        buttons=["copy"],
        editable="user",
        placeholder=WELCOME,
        latex_delimiters=[],
        allow_tags=False,
        allow_file_downloads=False,
        group_consecutive_messages=False,
    )


def question_box() -> gr.MultimodalTextbox:
    """Where a question is written, and images are added."""
    return gr.MultimodalTextbox(
        elem_id="box",
        show_label=False,
        label="Your question",
        placeholder="Ask about the images",
        file_types=["image"],
        file_count="multiple",
        sources=["upload"],
        max_lines=6,
    )


def example_strip(examples: Sequence[tuple[Path, str]]) -> gr.Gallery:
    """Small pictures, each of which goes with the next question when it is pressed."""
    return gr.Gallery(
        [(str(path), about) for path, about in examples],
        elem_id="examples",
        label="Example images",
        show_label=False,
        columns=len(examples),
        height=64,
        object_fit="cover",
        allow_preview=False,
        interactive=False,
        buttons=[],
    )


def parameter_controls() -> dict[str, gr.Slider | gr.Checkbox | gr.Number]:
    """A control for each parameter, under the parameter's name."""
    of = Parameters()
    return {
        "max_new_token": gr.Slider(
            1, 1024, of.max_new_token, step=1, label="max_new_token", info="Longest answer, in tokens"
        ),
        "num_beams": gr.Slider(1, 8, of.num_beams, step=1, label="num_beams", info="Above 1, answers come whole"),
        "do_sample": gr.Checkbox(of.do_sample, label="do_sample", info="Draw each word; off: take the likeliest"),
        "temperature": gr.Slider(
            0.1, 5, of.temperature, step=0.05, label="temperature", info="Lower safer, higher bolder"
        ),
        "top_k": gr.Slider(0, 200, of.top_k, step=1, label="top_k", info="From the k likeliest; 0: all"),
        "top_p": gr.Slider(0.05, 1, of.top_p, step=0.05, label="top_p", info="From the likeliest p of all"),
        "length_penalty": gr.Slider(
            -2,
            2,
            of.length_penalty,
            step=0.1,
            label="length_penalty",
            info="With beams: higher, longer",
            interactive=False,
        ),
        "no_repeat_ngram_size": gr.Slider(
            0,
            10,
            of.no_repeat_ngram_size,
            step=1,
            label="no_repeat_ngram_size",
            info="Repeats to avoid; 0: none",
        ),
        "seed": gr.Number(-1, precision=0, minimum=-1, label="seed", info="Repeats an answer; -1: a new one each time"),
    }


def head() -> str:
    """What stands in the page's head."""
    return f"<style>{STYLE.read_text(encoding='utf-8')}</style>"


def pill(kind: str, text: str) -> str:
    """A few words on the state of the API, with a dot: `ok`, `wait` or `down`."""
    return f'<span class="pill {kind}" role="status"><span>{escape(text)}</span></span>'


def theme() -> gr.themes.Base:
    """Calm colours, light and dark, and fonts that are there already."""
    return gr.themes.Default(
        primary_hue="teal", secondary_hue="teal", neutral_hue="slate", radius_size="lg", font=SANS, font_mono=MONO
    ).set(body_background_fill="*neutral_50", body_background_fill_dark="*neutral_950")
