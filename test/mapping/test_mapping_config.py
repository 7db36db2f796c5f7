import pytest
from hypothesis import given
from hypothesis import strategies as st

from fast3r_ros.errors import UserError
from fast3r_ros.mapping.config import MapperConfig, flat_parameters


def values_of(item):
    kind, bounds, choices = type(item.default), item.metadata["range"], item.metadata["choices"]
    if choices:
        return st.sampled_from(choices)
    if kind is bool:
        return st.booleans()
    numbers = st.integers(int(bounds[0]), int(bounds[1])) if kind is int else st.floats(*bounds)
    return numbers


FREE = [(name, item) for name, item in flat_parameters() if not name.startswith("window.")]


@given(st.fixed_dictionaries({}, optional={name: values_of(item) for name, item in FREE}))
def test_flat_values_survive_the_round_trip(values):
    config = MapperConfig.from_flat(values)
    flat = config.to_flat()
    assert {name: flat[name] for name in values} == values
    assert MapperConfig.from_flat(flat) == config


def test_every_parameter_has_a_description():
    for name, item in flat_parameters():
        assert len(item.metadata["description"]) > 15, name
        assert item.metadata["range"] or item.metadata["choices"] or isinstance(item.default, bool), name


def test_the_defaults_are_within_their_ranges():
    assert MapperConfig.from_flat(MapperConfig().to_flat()) == MapperConfig()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"window.sise": 4}, "unknown parameter 'window.sise'"),
        ({"map.keyframes_refused": 4}, "map.keyframes_refused is called map.moved_per_window now"),
        ({"window.size": 1}, "between 2 and 128"),
        ({"window.size": 4.5}, "of type int"),
        ({"window.size": "4"}, "of type int"),
        ({"loop.enabled": 1}, "of type bool"),
        ({"keyframes.motion": True}, "of type float"),
        ({"keyframes.motion": float("nan")}, "between"),
        ({"scale.source": "sonar"}, "one of none, odometry"),
        ({"window.size": 6, "window.stride": 4}, "exceed window.size 6"),
    ],
)
def test_wrong_values_are_named(values, words):
    with pytest.raises(UserError, match=words):
        MapperConfig.from_flat(values)


def test_whole_numbers_are_taken_for_either_type():
    config = MapperConfig.from_flat({"window.size": 12.0, "keyframes.max_interval": 3})
    assert config.window.size == 12
    assert isinstance(config.window.size, int)
    assert isinstance(config.keyframes.max_interval, float)
