"""Build the reference, a folder of web pages, out of the docstrings.

    pip install -e ".[docs]" && python .github/reference/build.py --out site

A warning, or a link into these pages that leads nowhere, is an error. README is the front page. The gallery
holds the pictures of `.github/pictures`, each made by its example; `--pictures` draws them anew, in some
minutes. The list of changes is made from the tags of git.
"""

import argparse
import ast
import html
import importlib
import pkgutil
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pdoc.doc
import pdoc.render
import pdoc.search

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PICTURES = ROOT / ".github" / "pictures"
REPOSITORY = "https://github.com/paddlejax/paddlejax"
PAGES = "https://paddlejax.github.io/paddlejax/"
RAW = "https://raw.githubusercontent.com/paddlejax/paddlejax/main/"
# What a user imports from; all else is reached through these.
PUBLIC = """
    paddlejax paddlejax.optimizer paddlejax.optimizer.lr paddlejax.optimizer.models paddlejax.optim
    paddlejax.optim.lr_scheduler paddlejax.interop paddlejax.schedules paddlejax.checkpoint
    paddlejax.distributed paddlejax.sparse paddlejax.splits paddlejax.info paddlejax.amp
    paddlejax.nn paddlejax.nn.utils paddlejax.regularizer paddlejax.static paddlejax.incubate
    paddlejax.incubate.optimizer paddlejax.incubate.optimizer.functional paddlejax.rules paddlejax.fluid
    paddlejax.fluid.optimizer paddlejax.fluid.clip paddlejax.fluid.regularizer paddlejax.fluid.layers
    paddlejax.fluid.dygraph paddlejax.fluid.wrappers paddlejax.guide
""".split()


def git(*arguments: str) -> str:
    """What git prints; nothing where the source code did not come by git."""
    try:
        ran = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return ran.stdout if ran.returncode == 0 else ""


def changes() -> str:
    """A section for each tag, newest first: its message, or the titles of its commits."""
    tags = git("tag", "--sort=-creatordate").split()
    sections = []
    for newer, older in zip(["HEAD", *tags], [*tags, ""], strict=True):
        span = f"{older}..{newer}" if older else newer
        titles = git("log", "--no-merges", "--format=%s", span).splitlines()
        if newer == "HEAD":
            if titles:
                sections.append("## Not released yet\n\n" + listed(titles))
        else:
            date, _, message = git(
                "tag", "--list", newer, "--format=%(creatordate:short) %(contents)"
            ).partition(" ")
            said = message.strip() if git("cat-file", "-t", newer).strip() == "tag" else ""
            sections.append(f"## {newer}, {date}\n\n" + (said or listed(titles)))
    return "\n\n".join(sections)


def listed(titles: list[str], most: int = 40) -> str:
    """The first titles as a list, and how many there are more."""
    rest = f"\n- and {len(titles) - most} more" if len(titles) > most else ""
    return "\n".join(f"- {html.escape(title)}" for title in titles[:most]) + rest


def gallery() -> str:
    """Each example with its first sentence, its command and its picture."""
    sections = []
    for picture in sorted(PICTURES.glob("*.png")):
        script = ROOT / "examples" / f"{picture.stem}.py"
        title = (ast.get_docstring(ast.parse(script.read_text())) or "").split("\n\n")[0]
        command = f"`python examples/{script.name}`"
        # A path from the file of the gallery's module, so that the picture becomes a part of the page.
        shown = f"![{picture.stem}](../../.github/pictures/{picture.name})"
        sections.append(f"## {picture.stem}\n\n{title}\n\n{command}\n\n{shown}")
    return "\n\n".join(sections)


def front() -> str:
    """README, its picture as a part of the page, and its links such that they work wherever the pages lie."""
    _, _, text = (ROOT / "README.md").read_text().partition("\n")  # the page has the title already
    text = text.replace(f"{RAW}.github/", "../.github/")
    return text.replace(f"({PAGES})", "(paddlejax.html)").replace(PAGES, "")


def modules() -> list[str]:
    """The public modules, and every guide."""
    guide = importlib.import_module("paddlejax.guide")
    return PUBLIC + [f"paddlejax.guide.{m.name}" for m in pkgutil.iter_modules(guide.__path__)]


def build(out: Path) -> None:
    """Write the pages."""
    pdoc.render.configure(
        docformat="google",
        math=True,
        template_directory=HERE / "templates",
        edit_url_map={"paddlejax": f"{REPOSITORY}/blob/main/paddlejax/"},
    )
    names = modules()
    loaded = {name: importlib.import_module(name) for name in names}
    package = loaded["paddlejax"]
    package.__doc__ = front()
    loaded["paddlejax.guide.gallery"].__doc__ += "\n" + gallery()
    loaded["paddlejax.guide.changes"].__doc__ += "\n" + changes()
    pages = {name: pdoc.doc.Module(module) for name, module in loaded.items()}
    for name, page in pages.items():
        path = out / (name.replace(".", "/") + ".html")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(without_dead_names(pdoc.render.html_module(page, pages)))
    (out / "index.html").write_text(pdoc.render.html_index(pages))
    (out / "search.js").write_text(pdoc.render.search_index(pages))


def without_dead_names(text: str) -> str:
    """The page, with names as text where pdoc links a member that it leaves out: inherited or private."""
    text = re.sub(r'<a href="[^"#]*#_[^"]*">(.*?)</a>', r"\1", text, flags=re.S)
    anchors = set(re.findall(r'\bid="([^"]+)"', text))
    link = re.compile(r'<a href="#([^"]+)">(.*?)</a>', re.S)
    return link.sub(lambda m: m[0] if m[1] in anchors else m[2], text)


def broken(out: Path) -> list[str]:
    """Links between the pages that lead nowhere."""
    texts = {path.resolve(): path.read_text() for path in out.rglob("*.html")}
    anchors = {path: set(re.findall(r'\bid="([^"]+)"', text)) for path, text in texts.items()}
    found = []
    for path, text in texts.items():
        for link in re.findall(r'href="([^"]+)"', text):
            if not re.match(r"[a-z]+:|\$", link):  # what begins with $ is filled in by a script
                file, _, anchor = html.unescape(link).partition("#")
                target = (path.parent / file).resolve() if file else path
                if target not in texts or anchor and anchor not in anchors[target]:
                    found.append(f"{path.relative_to(out.resolve())}: {link}")
    return sorted(set(found))


def draw() -> None:
    """Draw the picture of every example anew."""
    for script in sorted((ROOT / "examples").glob("*.py")):
        out = PICTURES / f"{script.stem}.png"
        subprocess.run([sys.executable, str(script), "--out", str(out)], check=True, cwd=ROOT)
        lighter(out)


def lighter(path: Path) -> None:
    """Rewrite a picture with 64 colours and at most 1000 pixels wide: a fifth of the bytes."""
    from PIL import Image  # comes with matplotlib

    image = Image.open(path).convert("RGB")
    image.thumbnail((1000, 1200))
    image.quantize(64).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "site", help="the folder of the pages; default: site"
    )
    parser.add_argument("--pictures", action="store_true", help="draw the pictures of the gallery anew")
    options = parser.parse_args()
    if options.pictures:
        draw()
    warnings.simplefilter("error")
    build(options.out)
    nowhere = broken(options.out)
    if nowhere:
        sys.exit("links that lead nowhere:\n" + "\n".join(nowhere))
    print(
        f"wrote {options.out}: {len(list(options.out.rglob('*.html')))} pages; open {options.out}/index.html"
    )


if __name__ == "__main__":
    main()
