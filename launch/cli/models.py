"""The commands that use what was trained: adapt, classify, export, serve."""

from __future__ import annotations

import glob
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from dist_train.config import Config
from dist_train.data.account import Account
from dist_train.errors import UserError, command
from dist_train.names import shown
from launch.cli.adding import last_left_out, photos_of

if TYPE_CHECKING:
    import torch

    from dist_train.classifier.classifier import Classifier

NAMES = ("adapt", "classify", "export", "serve")


def add(commands: Any, parser: Callable[..., Any]) -> None:
    """Add the parsers of these commands."""
    adapt = parser(
        description="Make a model of a run, or change one: add classes from one or more photos each, without training; "
        "rename and remove classes. Changes are made in the order remove, rename, class, all or none of them."
    )
    adapt.add_argument("source", type=Path, help="RUNS/NAME whose learn is done, or a model that adapt has made.")
    adapt.add_argument("--out", type=Path, help="Folder for the model; default: the model itself is changed.")
    adapt.add_argument(
        "--class", action="append", default=[], metavar="NAME=PHOTOS", help="Add a class from a photo, a folder or a "
        "quoted pattern. Repeat it for more classes, or for more photos of one."
    )  # fmt: skip
    adapt.add_argument("--classes", type=Path, metavar="DIR", help="Add a class for each folder in DIR, by its name.")
    adapt.add_argument("--remove", action="append", default=[], metavar="NAME", help="Remove a class (name or wnid).")
    adapt.add_argument("--rename", action="append", default=[], metavar="OLD=NEW", help="Rename a class.")
    adapt.add_argument("--list", action="store_true", help="Print the classes, one a line.")
    adapt.add_argument("--method", help="Of a run: which of its methods; default: phi_plus where it was trained, "
                       "else phi2. See docs/methods.md.")  # fmt: skip
    adapt.add_argument("--rule", help="How several photos count: max (the paper), mean, or rows; default: as it is.")
    adapt.add_argument("--held_out", type=Path, metavar="DIR", help="Photos in a folder for each class (name or wnid) "
                       "that say what additions do to these; default: the run's validation images.")  # fmt: skip
    commands.add_subcommand("adapt", adapt, help="add classes from photos, without training")

    classify = parser(description="What is on photos. A photo that cannot be read is named and left out; exit code 1.")
    classify.add_argument("model", type=Path, help="Folder made by adapt.")
    classify.add_argument("images", nargs="+", help="Photos, folders, quoted patterns; - reads one photo, or paths one "
                          "a line, from standard input.")  # fmt: skip
    classify.add_argument("--topk", type=int, default=5, help="Classes to name.")
    classify.add_argument("--json", action="store_true", help="A JSON object a line.")
    commands.add_subcommand("classify", classify, help="what is on photos")

    export = parser(description="A model for other programs; docs/python.md says how each is loaded.")
    export.add_argument("model", type=Path, help="Folder made by adapt.")
    export.add_argument("--format", required=True, help="torchvision, safetensors or onnx.")
    export.add_argument("--out", type=Path, help="File to write; default: the model's name, in this folder.")
    export.add_argument("--rule", help="How several photos of a class count: max, mean or rows; default: the model's.")
    commands.add_subcommand("export", export, help="to torchvision, safetensors or ONNX")

    serve = parser(description="A web page on this machine: drop photos, see the classes, add some. Ctrl-C ends it.")
    serve.add_argument("model", type=Path, help="Folder made by adapt; additions are written to it at once.")
    serve.add_argument("--host", default="127.0.0.1", help="Address to listen on; beyond this machine a token is "
                       "asked for.")  # fmt: skip
    serve.add_argument("--port", type=int, default=8000, help="Port; 0 = any free one.")
    serve.add_argument("--token", help="The token, at least 16 characters; default: one is drawn and printed.")
    serve.add_argument("--public_url", metavar="URL", help="The page's address at a proxy, as in "
                       "https://HOST:PORT/PATH/; see docs/serving.md.")  # fmt: skip
    serve.add_argument("--proxy", metavar="ADDRESS", help="With --public-url: the proxy's address or network; default: "
                       "this machine's.")  # fmt: skip
    serve.add_argument("--max_upload_mb", type=int, default=64, help="Limit of one upload in megabytes (10^6 bytes).")
    serve.add_argument("--max_megapixels", type=int, default=64, help="Limit of one photo in millions of pixels.")
    serve.add_argument("--max_classes", type=int, default=5000, help="Limit of all classes together.")
    commands.add_subcommand("serve", serve, help="a web page to try a model")


def adapt(given: Namespace, load_config: Callable[[Path], Config]) -> int:
    from dist_train.classifier import model_folder

    if not given.source.exists():
        raise UserError(f"{given.source}: no such run or model; give RUNS/NAME, or a folder made by adapt")
    config = None if model_folder.is_model(given.source) else load_config(given.source)
    out = given.out or (given.source if config is None else None)
    if out is None and (_changes(given) or not given.list):
        raise UserError("--out is required: the folder for the model")
    if config is None and given.method:
        raise UserError("--method: is chosen when a model is made of a run; give the run")
    writes = out is not None and bool(_changes(given) or config or given.rule or given.out)
    with _written(out, given.source, config is None) if writes and out else nullcontext():
        model = _open(given, config)
        told = _apply(given, model, config)
        if writes and out:
            model.save(out)
    if given.list:
        told = [f"{one.name}\t{shown(one.wnid) or '-'}\t{one.photos or '-'}" for one in model.classes]
    for text in told:
        print(text)
    if writes and not given.list:
        print(f"{out}: {len(model.classes)} classes, {model.network.method}, rule {model.rule}")
    return 0


@contextmanager
def _written(out: Path, source: Path, is_model: bool) -> Iterator[None]:
    """The folder that a model is written to, for this process alone; as it was after an error.

    Raises:
        UserError: it is there and not the model that is changed, or lies in what it is made of.
    """
    from dist_train.classifier import model_folder

    if source.resolve() in out.resolve().parents or (not is_model and _same(out, source)):
        raise UserError(f"--out {out}: lies in {source}; take another folder")
    other = not (is_model and _same(out, source))
    remedy = f"take another folder, or change it: {command('adapt', out, '--class', 'NAME=PHOTOS')}"
    if other and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: exists; {remedy}")
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with model_folder.lock(out):
            if other and model_folder.is_model(out):  # since the look above
                raise UserError(f"--out {out}: exists; {remedy}")
            yield
    except BaseException:
        if made and not model_folder.is_model(out):
            (out / ".lock").unlink(missing_ok=True)
            with suppress(OSError):
                out.rmdir()
        raise


def _changes(given: Namespace) -> bool:
    return bool(given["class"] or given.classes or given.remove or given.rename)


def _open(given: Namespace, config: Config | None) -> Classifier:
    from dist_train.classifier.classifier import Classifier
    from dist_train.classifier.from_run import from_run

    if config is not None:
        return from_run(config, given.method, given.rule)
    model = Classifier.load(given.source)
    if given.rule:
        model.rule = given.rule
    return model


def _apply(given: Namespace, model: Classifier, config: Config | None) -> list[str]:
    """Remove, rename and add classes; what is to be said of the additions."""
    from dist_train.distributed.pool import progress_bar

    for name in given.remove:
        model.remove_class(name)
    for text in given.rename:
        pairs = [(text[:n], text[n + 1 :]) for n, sign in enumerate(text) if sign == "=" and 0 < n < len(text) - 1]
        if not pairs:
            raise UserError(f"--rename {text}: give OLD=NEW")
        known = [pair for pair in pairs if any(pair[0] in (one.name, one.wnid) for one in model.classes)]
        model.rename_class(*(known or pairs)[0])  # a name may have a = in it
    account = Account()
    new = _new_classes(given, account)
    for name in new:
        model.check_new(name)  # before the work
    first = len(model.classes)
    bar = progress_bar(sum(map(len, new.values())), "photos", "img", sum(map(len, new.values())) > 20)
    broken = False
    for name, paths in new.items():
        activations = photos_of(model, paths, account)
        broken = broken or len(activations) < len(paths)
        if not broken:
            model.add_activations(name, activations)
        bar.update(len(paths))
    bar.close()
    if broken:
        _print_account(account)
        raise UserError(f"{last_left_out(account)}; nothing is changed")
    added = [f"{one.name}: added from {one.photos} photo{'s' * (one.photos > 1)}" for one in model.classes[first:]]
    asked = _held_out(given, model, config, account) if new or given.held_out else None
    _print_account(account)
    if not asked:
        return added
    rates = model.base_accuracy(*asked)[-len(new) - 1 :]
    steps = [f"{text}; base {after:.2f}% ({after - before:+.2f})"
             for text, before, after in zip(added, rates, rates[1:], strict=False)]  # fmt: skip
    told = f"{rates[0]:.2f}% before, {rates[-1]:.2f}% after" if new else f"{rates[0]:.2f}%"
    return [*steps, f"base accuracy on {len(asked[1])} held-out images: {told}"]


def _new_classes(given: Namespace, account: Account) -> dict[str, list[Path]]:
    """Name -> its photos."""
    from dist_train.data.sources.folders import class_folders
    from dist_train.names import class_name

    found: dict[str, list[Path]] = {}
    for text in given["class"]:
        name, where = _pair("--class", text, "NAME=PHOTOS")
        found.setdefault(class_name(name), []).extend(_expand(where, f"--class {text}", account))
    if given.classes:
        if not given.classes.is_dir():
            raise UserError(f"--classes {given.classes}: no such folder; give one with a folder of photos a class")
        for name, files in class_folders(given.classes, "--classes", account):
            found.setdefault(name, []).extend(given.classes / file.name for file in files)
    return found


def _held_out(
    given: Namespace, model: Classifier, config: Config | None, account: Account
) -> tuple[torch.Tensor, list[int]] | None:
    """Activations of images of the classes that came with the run, and their places in ``model.classes``."""
    import torch

    from dist_train.classifier.from_run import held_out_activations
    from dist_train.data.sources.folders import class_folders

    base = [one for one in model.classes if not one.added]
    if given.held_out is None:
        if config is None:
            return None
        activations, labels = held_out_activations(config)
        place = {number: n for n, number in enumerate(model.kept)}
        kept = [n for n, label in enumerate(labels) if label in place]
        return (activations[kept], [place[labels[n]] for n in kept]) if kept else None
    place = {name: n for n, one in enumerate(base) for name in (one.wnid, one.name)}
    found, labels = [], list[int]()
    if not given.held_out.is_dir():
        raise UserError(f"--held_out {given.held_out}: no such folder; give one with a folder of photos a class")
    for name, files in class_folders(given.held_out, "--held_out", account):
        if name in place:
            found.append(model.activations([given.held_out / file.name for file in files], name))
            labels += [place[name]] * len(files)
        else:
            account.taken -= len(files)
            account.pass_over(f"{given.held_out}/{name}", "in folders of no class of the run", len(files))
    if not found:
        raise UserError(f"--held_out {given.held_out}: holds no folder with the name or wnid of a class; make some")
    return torch.cat(found), labels


def classify(given: Namespace) -> int:
    from dist_train.classifier.classifier import Classifier, batches

    if given.topk < 1:
        raise UserError(f"--topk {given.topk}: must be >= 1")
    model = Classifier.load(given.model)
    account = Account()
    for part in batches(_photos(given.images, model.pixels, account)):
        readable = []
        for name, load in part:
            try:
                readable.append((name, load()))
            except UserError as error:
                account.taken -= 1
                account.leave_out(name, str(error))
                print(f"dist-train: error: {shown(error)}", file=sys.stderr)
        if not readable:
            continue
        answers = model.predict([pixels for _, pixels in readable], given.topk)
        for (name, _), predictions in zip(readable, answers, strict=True):
            if given.json:
                print(_json({"image": name, "classes": [asdict(p) for p in predictions]}))
            else:
                print(shown(name), *(f"{100 * p.probability:7.2f}%  {p.name}" for p in predictions), sep="\n")
        sys.stdout.flush()
    _print_account(account, details=False)
    return 1 if account.left_out else 0


def _json(content: dict[str, Any]) -> str:
    """One line; in ASCII where the text has what a terminal would not show, or what is not UTF-8."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    return text if shown(text) == text else json.dumps(content, allow_nan=False)


def _print_account(account: Account, details: bool = True) -> None:
    """What became of several files, on stderr; ``details``: also each that is left out."""
    if account.found > 1:
        print("\n".join([account.line(), *account.left_out_lines() * details, *account.passed_over_lines()]),
              file=sys.stderr)  # fmt: skip


def _photos(
    images: Sequence[str], load: Callable[..., torch.Tensor], account: Account
) -> Iterator[tuple[str, Callable[[], torch.Tensor]]]:
    """What each is called, and what loads it by ``load``, or raises UserError. The account counts all of them as
    taken, and has what is passed over."""
    from dist_train.classifier import photos

    def failing(error: UserError) -> Callable[[], torch.Tensor]:
        account.taken += 1

        def fail() -> torch.Tensor:
            raise error

        return fail

    for image in images:
        words = [image]
        if image == "-":
            data = sys.stdin.buffer.read()
            if photos.is_image(data):
                account.taken += 1
                yield "-", partial(load, data, "standard input")
                continue
            words = [] if b"\0" in data else [os.fsdecode(line) for line in data.splitlines() if line.strip()]
            if not words:
                what = "neither an image nor a list of paths" if data else "empty"
                yield "-", failing(UserError(f"standard input: {what}; give one photo, or paths one a line"))
        for word in words:
            here = Account()
            try:
                found = _expand(word, word, here)
            except UserError as error:
                yield word, failing(error)
                continue
            broken, here.left_out = here.left_out, []
            account.add(here)
            yield from ((name, failing(UserError(f"{name}: {reason}"))) for name, reason in broken)
            yield from ((str(path), partial(load, path)) for path in found)


def export(given: Namespace) -> int:
    from dist_train.classifier.classifier import Classifier
    from dist_train.classifier.export import FORMATS

    if given.format not in FORMATS:
        raise UserError(f"--format {given.format}: give one of {', '.join(FORMATS)}")
    suffix, write = FORMATS[given.format]
    out = given.out or Path(given.model.absolute().name + suffix)
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: {'is a folder' if out.is_dir() else 'no such folder'}; give a file to write")
    if out.exists() and not out.is_file():
        raise UserError(f"--out {out}: is no ordinary file; give another")
    if out.resolve().parent == given.model.resolve():
        raise UserError(f"--out {out}: lies in the model; give a file elsewhere")
    model = Classifier.load(given.model, "cpu")
    if given.rule:
        model.rule = given.rule
    told = write(model, out)
    print(f"{out}: {len(model.classes)} classes\n{told}")
    return 0


def serve(given: Namespace) -> int:
    from dist_train.classifier.serving import server
    from dist_train.classifier.serving.address import PublicURL, parse_network
    from dist_train.classifier.serving.served_model import Limits

    public = None if given.public_url is None else PublicURL.parse(given.public_url)
    if given.proxy and not public:
        raise UserError(f"--proxy {given.proxy}: is of use with --public-url only; give that too")
    proxies = {"proxies": (parse_network(given.proxy),)} if given.proxy else {}
    options = server.ServeOptions(given.host, given.port, given.token, public, **proxies)
    limits = Limits(given.max_upload_mb * 1_000_000, given.max_megapixels * 1_000_000, given.max_classes)
    return server.serve(given.model, options, limits)


def _pair(option: str, text: str, form: str) -> tuple[str, str]:
    first, sign, second = text.partition("=")
    if not sign or not first or not second:
        raise UserError(f"{option} {text}: give {form}")
    return first, second


def _expand(text: str, option: str, account: Account) -> list[Path]:
    """The photos that a word means: a file, those of a folder, or those that match a pattern."""
    from dist_train.classifier import photos

    path = Path(text)
    if text and not path.exists():
        with suppress(RuntimeError):  # no such user
            path = path.expanduser()
    if text and path.is_dir():
        return photos.in_folder(path, account)
    if text and path.exists():
        account.taken += 1  # as it was asked for, whatever it is called
        return [path]
    found = photos.matching(str(path), account) if glob.has_magic(text) else []
    if not found:
        raise UserError(f"{option}: no such file or folder, and no pattern that matches; check the path")
    return found


def _same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)
