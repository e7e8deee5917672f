"""Transforms: functions of tensors without parameters."""
