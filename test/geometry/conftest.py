from second_device import other_device

__all__ = ["other_device"]  # a fixture
