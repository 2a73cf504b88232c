"""Audits behind these commands are small: what is tested here is what a user says and is told."""

from __future__ import annotations

from tests.layouts.conftest import small_audits

__all__ = ["small_audits"]
