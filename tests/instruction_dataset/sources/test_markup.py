"""Markup: HTML of a chat page becomes the Markdown that it shows, and prose that mentions HTML is left alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instruction_dataset.sources._markup import as_markdown, is_html

CODE = '<pre><div><span>python</span><button>Copy code</button><code class="hljs language-python">{}</code></div></pre>'
FORMULA = (
    '<span class="katex"><span class="katex-mathml"><math><semantics><mrow><mi>x</mi><mrow></mrow></mrow>'
    "<annotation>x^2</annotation></semantics></math></span>"
    '<span class="katex-html"><span>x</span><span>2</span></span></span>'
)


@pytest.mark.parametrize(
    ("html", "markdown"),
    [
        ("<p>One.</p><p>Two.</p>", "One.\n\nTwo."),
        ("<div>\n<p>One </p>\n\n<p> Two</p>\n</div>", "One\n\nTwo"),
        ("<p>a<br>b<br/>c</p>", "a\nb\nc"),
        ("<p>1 &lt; 2 &amp;&amp; caf&eacute;</p>", "1 < 2 && café"),
        ("<p>use <code>a  b</code>, <strong>now</strong> or <em>later</em></p>", "use `a  b`, **now** or *later*"),
        ("<h3>Title</h3><p>text</p>", "### Title\n\ntext"),
        ("<p>so:</p><ul>\n<li>a</li>\n<li><p>b</p></li>\n</ul><p>end</p>", "so:\n\n- a\n- b\n\nend"),
        ("<ol><li>a</li><li>b<ul><li>c</li></ul></li><li>d</li></ol>", "1. a\n2. b\n   - c\n3. d"),
        ('<ol start="4"><li>a</li></ol>', "4. a"),
        (CODE.format("if x:\n    y = &#39;&lt;p&gt;&#39;\n"), "```python\nif x:\n    y = '<p>'\n```"),
        ("<pre>as\n  it is\n</pre><p>end</p>", "```\nas\n  it is\n```\n\nend"),
        (
            "<table><tr><th>a</th> <th>b</th></tr>\n<tr><td>1</td><td>2</td></tr></table>",
            "| a | b |\n| --- | --- |\n| 1 | 2 |",
        ),
        (
            "<table><tr><td><p>a</p>b<br>c</td><td></td></tr></table><p>end</p>",
            "| a b c | |\n| --- | --- |\n\nend",
        ),
        (
            "<ol><li><p>a</p><p>b</p><ul><li>c<pre>d\n\n e</pre></li></ul></li></ol><p>end</p>",
            "1. a\n\n   b\n\n   - c\n\n      ```\n      d\n\n       e\n      ```\n\nend",
        ),
        ("<p>x<sup>2</sup> H<sub>2</sub>O</p>", "x<sup>2</sup> H<sub>2</sub>O"),
        ("<div><svg><path>x</path></svg><p>text</p><button>Copy</button></div>", "text"),
        (f"<p>so {FORMULA} holds</p>", "so $x^2$ holds"),
    ],
)
def test_html_becomes_the_markdown_it_shows(html, markdown):
    assert is_html(html)
    assert as_markdown(html) == markdown


@pytest.mark.parametrize(
    "text", ["", "plain", "Use <p>one</p> of these", "<p>one</p> of these", "a < b > c", "<T>x</T>", "`<p>x</p>`"]
)
def test_prose_that_mentions_html_is_no_html(text):
    assert not is_html(text)


TAGS = [f"<{slash}{tag}>" for tag in ("p", "li", "ol", "pre", "code", "td", "b") for slash in ("", "/")]


@given(st.lists(st.sampled_from([*TAGS, "x ", "< ", "&amp;"])))
def test_html_in_any_disorder_is_read_to_its_end(pieces):
    assert as_markdown("".join([*pieces, "</code></pre>the end"])).endswith("the end")


@given(st.lists(st.sampled_from([tag for tag in TAGS if "pre" not in tag] + ["x "])))
def test_no_word_is_lost(pieces):
    assert as_markdown("".join(pieces)).count("x") == pieces.count("x ")
