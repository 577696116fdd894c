"""HTML as a chat page shows an answer -> the Markdown that it was made of."""

import re
from html.parser import HTMLParser

BLOCKS = ("blockquote", "div", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "ol", "p", "pre", "table", "ul")
INLINE = {"strong": "**", "b": "**", "em": "*", "i": "*", "annotation": "$", "sub": "<sub>", "sup": "<sup>"}
"""What stands on both sides of a text; an annotation is the source of a formula, and for some tags Markdown has no mark."""
INDENT = "   "
"""What stands before the lines of a list's item but its first, for each list around it."""
UNSEEN = ("button", "script", "style", "svg", "mrow")
UNSEEN_CLASS = "katex-html"

_PAGE = re.compile(rf"\s*<(?:{'|'.join(BLOCKS)})(?:\s[^<>]*)?>.*</(?:{'|'.join(BLOCKS)})>\s*", re.DOTALL)
_LANGUAGE = re.compile(r"language-(\S+)")


def is_html(text: str) -> bool:
    """Whether all of a text is blocks of HTML, rather than prose that mentions some."""
    return _PAGE.fullmatch(text) is not None


def as_markdown(html: str) -> str:
    """The text of HTML, with its paragraphs, lists, tables, code and formulas as Markdown writes them."""
    parser = _Parser()
    parser.feed(html)
    parser.close()
    return "".join(parser.parts).strip()


class _Parser(HTMLParser):
    """Writes text as it comes; newlines and list marks wait until there is text for them to stand before."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._newlines = 0
        self._mark = ""
        self._lists: list[int | None] = []
        """The number of the last item of each list we are in; None where items have no number."""
        self._cells: int | None = None
        """How many cells the row of a table that we are in has so far."""
        self._is_head = False
        """Whether the next row is the first of its table."""
        self._unseen: list[str] = []
        """The tag whose content is not shown, and those of the same name inside it."""
        self._code: list[str] | None = None
        self._language = ""
        self._block: list[str] | None = None
        """What stands in a preformatted block around its code: a name and a button of the page, or the code itself."""
        self._fenced = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        classes = dict(attrs).get("class") or ""
        if self._unseen or tag in UNSEEN or UNSEEN_CLASS in classes.split():
            self._unseen += [tag] if not self._unseen or tag == self._unseen[0] else []
        elif self._code is not None:  # the colours of code
            return
        elif tag == "code":
            self._code = []
            self._language = found[1] if (found := _LANGUAGE.search(classes)) else ""
        elif tag in INLINE:
            self._write(INLINE[tag])
        else:
            self._begin(tag, dict(attrs).get("start") or "")

    def handle_endtag(self, tag: str) -> None:
        if self._unseen:
            if tag == self._unseen[0]:
                self._unseen.pop()
        elif self._code is not None:
            if tag == "code":
                self._end_code(self._code)
        elif tag in INLINE:
            self.parts.append(INLINE[tag].replace("<", "</"))
        else:
            self._end(tag)

    def handle_data(self, data: str) -> None:
        if self._unseen:
            return
        if self._code is not None:
            self._code.append(data)
        elif self._block is not None:
            self._block.append(data)
        else:
            self._write(re.sub(r"\s+", " ", data))

    def _begin(self, tag: str, start: str) -> None:
        match tag:
            case "br":
                self._break(1)
            case "table":
                self._break(2)
                self._is_head = True
            case "tr":
                self._end("tr")
                self._break(1)
                self._cells = 0
            case "li":
                self._break(1)
                self._mark = self._next_mark()
            case "td" | "th":
                self._write(" | ")
                if self._cells is not None:
                    self._cells += 1
            case "ol" | "ul":
                first = int(start) if start.isdecimal() else 1
                self._lists.append(first - 1 if tag == "ol" else None)
                self._break(1 if len(self._lists) > 1 else 2)
            case "pre":
                self._end("pre")
                self._break(2)
                self._block, self._fenced = [], False
            case _ if tag in BLOCKS:
                self._break(2)
                self._mark += "#" * int(tag[1]) + " " if re.fullmatch("h[1-6]", tag) else ""

    def _end(self, tag: str) -> None:
        if tag in ("ol", "ul") and self._lists:
            self._lists.pop()
            self._break(1 if self._lists else 2)
        elif tag == "pre":
            if self._block and not self._fenced:
                self._fence("".join(self._block), "")
            self._block = None
        elif tag == "tr" and self._cells is not None:
            self._end_row(self._cells)
        elif tag in BLOCKS:
            self._break(2)

    def _end_row(self, cells: int) -> None:
        self._write(" |")
        self._cells = None
        if self._is_head:
            self._break(1)
            self._write("|" + " --- |" * cells)
        self._is_head = False

    def close(self) -> None:
        """End what the text leaves open."""
        super().close()
        if self._code is not None:
            self._end_code(self._code)
        self._end("pre")

    def _end_code(self, pieces: list[str]) -> None:
        code = "".join(pieces)
        self._code = None
        if self._block is None:
            self._write(f"`{code}`")
        else:
            self._fence(code, self._language)

    def _fence(self, code: str, language: str) -> None:
        code = code.strip("\n")
        self._write(f"```{language}\n{code}\n```")
        self._break(2)
        self._fenced = True

    def _next_mark(self) -> str:
        indent = INDENT * (len(self._lists) - 1)
        if not self._lists or self._lists[-1] is None:
            return f"{indent}- "
        self._lists[-1] += 1
        return f"{indent}{self._lists[-1]}. "

    def _break(self, newlines: int) -> None:
        if self._cells is not None:  # a cell is one line
            self._write(" ")
        # a paragraph in an item begins on the line of the item's mark
        elif not self._mark:
            self._newlines = max(self._newlines, newlines)

    def _write(self, text: str) -> None:
        if self._newlines or self._mark or not self.parts or self.parts[-1].endswith(" "):
            text = text.lstrip(" ")
        if not text:
            return
        if self._newlines and self.parts:
            self.parts[-1] = self.parts[-1].rstrip(" ")
        indent = INDENT * len(self._lists)
        start = self._mark or (indent if self._newlines else "")
        self.parts.append("\n" * self._newlines + start + re.sub(r"\n(?!\n)", f"\n{indent}", text))
        self._newlines, self._mark = 0, ""
