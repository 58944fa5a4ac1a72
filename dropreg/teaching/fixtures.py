"""What checks hand to a student's function and cannot send as numbers: models, text."""

from __future__ import annotations

from torch import nn

from dropreg.data import Digits, load_digits

__all__: list[str] = []
