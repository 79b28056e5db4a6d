"""Bytes on disk and behind urls: whole or absent, checked, locked, streamed. No algorithm."""
