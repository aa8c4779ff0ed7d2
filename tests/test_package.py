"""The package as a whole: what importing it costs, and what it registers, in whatever order things are imported."""

import subprocess
import sys
from pathlib import Path

import pytest

import ad_hf

MODEL = Path(__file__).parent / "data" / "before" / "run" / "model"
HEAVY = "'torch', 'transformers', 'datasets', 'stable_baselines3', 'pyarrow', 'matplotlib', 'pandas'"
IMPORTS = [
    f"import sys, ad_hf; print(sorted({{{HEAVY}}} & set(sys.modules)))",
    f"import sys, ad_hf.cli; ad_hf.cli.main(['--help']); print(sorted({{{HEAVY}}} & set(sys.modules)))",
    "import gymnasium; print([gymnasium.make('ad_hf:ad_hf/DarkRoom-v0').spec.id])",
    "import ad_hf; print([ad_hf.histories.from_rollout.__name__, ad_hf.train.__name__])",
]
EXPECTED = ["[]", "[]", "['ad_hf/DarkRoom-v0']", "['from_rollout', 'train']"]
ORDERS = [
    "import ad_hf; from transformers import AutoConfig",
    "from transformers import AutoConfig; import ad_hf",
    "import ad_hf; from transformers import AutoModel",
    "from transformers import AutoModel; import ad_hf",
    "import ad_hf; ad_hf.ADModel; from transformers import AutoModel",
    "import ad_hf; ad_hf.ADConfig; from transformers import AutoModel",
]


def printed(code):
    """The last line that a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize(("code", "expected"), list(zip(IMPORTS, EXPECTED)))
def test_importing_takes_what_is_used_and_no_more(code, expected):
    assert printed(code) == expected


@pytest.mark.parametrize("order", ORDERS)
def test_auto_classes_know_the_model_without_trust_in_every_order_of_imports(order):
    name = order.split()[-1] if "Auto" in order.split(";")[-1] else order.split(";")[0].split()[-1]
    loaded = printed(f"{order}; print(type({name}.from_pretrained({str(MODEL)!r})).__module__)")
    assert loaded == ("ad_hf.model.modeling_ad" if name == "AutoModel" else "ad_hf.model.configuration_ad")


def test_every_public_name_is_there():
    assert set(ad_hf.__all__) <= set(dir(ad_hf))
    assert all(getattr(ad_hf, name) is not None for name in ad_hf.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ad_hf.nothing  # noqa: B018
