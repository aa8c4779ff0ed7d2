"""A family that comes along: those of the package are known; what could import, call or open something is refused."""

import pytest

from ad_hf.envs.foreign import TASK_FUNCTIONS, WRAPPERS, check_env_id, check_family_section
from ad_hf.envs.recipes import read_recipe, recipe_names
from ad_hf.envs.tasks import import_callable

ROOM = {"env_id": "ad_hf/DarkRoom-v0", "grid": {"goal": {"shape": [3, 3]}}}
LIMIT = {"name": "gymnasium.wrappers.TimeLimit"}
RANDOM = {"values": {"goal": {"function": "os.system"}}}


# metaworld_reach has an id that imports a package, and a mixture no family.
@pytest.mark.parametrize(
    "name", [name for name in recipe_names() if name != "metaworld_reach" and "family" in read_recipe(name)]
)
def test_families_of_the_package_are_known(name):
    check_family_section(read_recipe(name)["family"], "the model m")


@pytest.mark.parametrize("name", sorted(TASK_FUNCTIONS | WRAPPERS))
def test_every_known_name_is_there(name):
    assert callable(import_callable(name, "name"))


@pytest.mark.parametrize(
    ("family", "named"),
    [
        ({"stratify_by": "ad_hf.envs.dark_room.goal_distance "}, "family.stratify_by"),
        ({"stratify_by": "ad_hf.envs.dark_room"}, "family.stratify_by"),
        ({"stratify_by": ["ad_hf.envs.dark_room.goal_distance"]}, "family.stratify_by"),
        ({"optimal_return": "ad_hf.storage.folders.shutil.rmtree"}, "family.optimal_return"),
        ({"random_return": "builtins.eval"}, "family.random_return"),
        ({"wrappers": ["gymnasium.wrappers.TimeLimit", "gymnasium.wrappers.RecordVideo"]}, r"family.wrappers\[1\]"),
        ({"wrappers": [{"kwargs": {"name": "x"}, "name": "gymnasium.Env"}]}, r"family.wrappers\[0\]"),
        ({"wrappers": [{**LIMIT, "kwargs": {"log_dir": "/tmp"}}]}, r"family.wrappers\[0\].log_dir"),
        ({"env_kwargs": {"xml_file": "a.xml"}}, "family.env_kwargs.xml_file"),
        ({"env_kwargs": {"inner": [{"model_path": "a"}]}}, r"family.env_kwargs.inner\[0\].model_path"),
        ({"tasks": [{"goal": 1}, {"xml_file": "a.xml"}]}, r"family.tasks\[1\].xml_file"),
        ({"grid": {"xml_file": ["a.xml"]}}, "family.grid.xml_file"),
        ({"random": {"values": {"xml_file": {"choices": ["a"]}}}}, "family.random.values.xml_file"),
        ({"random": RANDOM}, "family.random.values.goal.function"),
        ({"splits": {"test": {"random": RANDOM}}}, "family.splits.test.random.values.goal.function"),
        ({"splits": {"train": {"tasks": [{"rom_file": "a"}]}}}, r"family.splits.train.tasks\[0\].rom_file"),
        ({"splits": {"train": [{"rom_file": "a"}]}}, r"family.splits.train.tasks\[0\].rom_file"),
        ({"attributes": ["_np_random"]}, "_np_random"),
        ({"attributes": ["unwrapped.spec"]}, "unwrapped.spec"),
        ({"env_id": "os:ad_hf/DarkRoom-v0"}, "os:ad_hf/DarkRoom-v0"),
        ({"env_id": "ad_hf/DarkRoom"}, "ad_hf/DarkRoom"),
        ({"env_id": "GymV26Environment-v0"}, "GymV26Environment-v0"),
    ],
)
def test_what_could_do_more_is_refused_with_the_way_out(family, named):
    with pytest.raises(ValueError, match=rf"^the model m comes with .*{named}.*trust_remote_code=True"):
        check_family_section({**ROOM, **family}, "the model m")


@pytest.mark.parametrize("env_id", [None, 3, ["ad_hf/DarkRoom-v0"], {}])
def test_an_id_that_is_no_text_is_refused(env_id):
    with pytest.raises(ValueError, match=r"the dataset d: family.env_id must be text"):
        check_env_id(env_id, "the dataset d")
