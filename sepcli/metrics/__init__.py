"""Scores of separated songs: SDR and its kin, BSSEval v4, oracles, the papers' protocols, statistics."""
