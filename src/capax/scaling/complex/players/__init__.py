"""Tiny models that play generated tasks: what they learn, and in which words they are asked."""

from __future__ import annotations

from collections.abc import Mapping

from capax.scaling.complex.players.formulas import SatDirect, SatSearch
from capax.scaling.complex.players.tours import TspDirect, TspSearch

Player = TspDirect | TspSearch | SatDirect | SatSearch

PLAYERS: Mapping[str, Player] = {
    player.name: player
    for player in (
        TspDirect("tsp-direct"),
        TspSearch("tsp-search"),
        SatDirect("3sat-direct"),
        SatSearch("3sat-search"),
    )
}
