"""What sqbench promises in SECURITY.md: no pickle, no eval, no shell, no secret in what it writes, nothing written elsewhere."""

import ast
import io
import pickle
import shutil
from pathlib import Path

import pytest
from audit import unpickled
from cli import ROOT, run, tiny_run

SOURCES = sorted(path for part in ("sqbench", "hydra_plugins", "scripts", "benchmarks") for path in (ROOT / part).rglob("*.py"))
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "instantiate"}


def called(node: ast.Call) -> str:
    """`torch.load` of `torch.load(...)`."""
    return ast.unparse(node.func)


def sins(path: Path) -> list[str]:
    """What a source file must not have, each with its line."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
            found += [f"{node.lineno}: imports {name}" for name in names if name.partition(".")[0] in MODULES]
        if isinstance(node, ast.Call):
            told = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            name = called(node)
            loads = name == "load_state_dict" or name.endswith("torch.load")
            safe = name == "yaml.load" and ast.unparse(node.args[-1]).endswith("SafeLoader")
            bad = (name in CALLS and not safe) or (loads and told.get("weights_only") != "True")
            bad |= "True" in (told.get("shell"), told.get("allow_pickle"), told.get("trust_remote_code"))
            found += [f"{node.lineno}: {ast.unparse(node)[:80]}"] * bad
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_source_file_runs_nobody_elses_code(path):
    assert sins(path) == []


@pytest.mark.parametrize("code", [
    "import pickle", "from joblib import load", "eval(text)", "torch.load(file)", "torch.load(file, weights_only=False)",
    "subprocess.run(line, shell=True)", "numpy.load(file, allow_pickle=True)", "os.system(line)", "yaml.load(text, Loader)",
])  # fmt: skip
def test_the_search_finds_what_it_looks_for(tmp_path, code):
    (tmp_path / "a.py").write_text(code, encoding="utf-8")
    assert len(sins(tmp_path / "a.py")) == 1


PICKLE = pickle.dumps(Path("a"))


@pytest.mark.parametrize("code", [
    "pickle.loads(PICKLE)", "list(map(pickle.loads, [PICKLE]))", "pickle._loads(PICKLE)",
    "pickle.Unpickler(io.BytesIO(PICKLE)).load()",
])  # fmt: skip
def test_a_pickle_is_heard_when_our_code_reads_it_and_only_then(code):
    names = {"pickle": pickle, "io": io, "PICKLE": PICKLE}
    exec(compile(code, str(ROOT / "tests" / "made_up.py"), "exec"), dict(names))  # noqa: S102
    assert unpickled == []
    place = str(ROOT / "sqbench" / "made_up.py")
    exec(compile(code, place, "exec"), dict(names))  # noqa: S102
    heard = unpickled[:]
    unpickled.clear()  # or this test would fail
    assert heard
    assert all(one.startswith(f"{place}:1 unpickles pathlib.") for one in heard)


SECRETS = {"WANDB_API_KEY": "c" * 40, "HF_TOKEN": "hf_plantedplantedplanted", "AWS_SECRET_ACCESS_KEY": "planted/aws/secret"}


@pytest.mark.slow
def test_no_secret_and_no_name_gets_out_of_place(tiny_folder, text_file, tmp_path):
    """One run with secrets in its environment and a hostile name; then every file that it left anywhere below."""
    results = tmp_path / "deep" / "er" / "results"
    line = tiny_run(tiny_folder, text_file, results, "method=rtn", "data.name='../../../evil'", "tracker=wandb")
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    ended = run(*line, cwd=tmp_path, WANDB_MODE="offline", **SECRETS)
    assert ended.returncode == 0, ended.stderr
    (record,) = results.glob("runs/*/record.json")
    made = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert record in made
    assert [path for path in made if results not in path.parents] == []
    told = [path.read_bytes() for path in made] + [ended.stdout.encode(), ended.stderr.encode()]
    assert [secret for secret in SECRETS.values() for text in told if secret.encode() in text] == []
    shutil.rmtree(results)
