"""Tiny models that play generated tasks: what they learn, and in which words they are asked."""

from __future__ import annotations

from collections.abc import Mapping

from capax.errors import ConfigError
from capax.scaling.complex.players.formulas import SatDirect, SatSearch
from capax.scaling.complex.players.tours import TspDirect, TspSearch

Player = TspDirect | TspSearch | SatDirect | SatSearch

PLAYERS: Mapping[str, Player] = {
    player.name: player for player in (TspDirect(), TspSearch(), SatDirect(), SatSearch())
}


def player_named(name: str) -> Player:
    """Return a player. Raises ConfigError for an unknown one."""
    try:
        return PLAYERS[name]
    except KeyError:
        known = ", ".join(PLAYERS)
        raise ConfigError(f"there is no player {name!r:.60}; known are {known}") from None
