"""The text that the tasks on words are cut from: plain words, no punctuation."""

from __future__ import annotations

TEXT = """
the old ferry left the harbour a little after dawn with eleven people on board and one very large
dog nobody had slept well because the wind had shaken every window of the inn until the clock in
the hall struck four now the sea lay flat and grey like a sheet of paper and the captain drank
his tea without looking at it once he had made this crossing more than nine thousand times and
still kept a small book in which he wrote the weather the number of passengers and anything that
seemed strange to him on most days the last column stayed empty but this morning he wrote that a
white bird had followed the boat from the pier and would not eat bread a girl in a green coat asked
him whether birds could be lost he thought about it for some time and answered that a bird always
knows where north is but perhaps not why it should go there she laughed and ran back to her mother
who was reading a letter for the third time behind them two brothers argued about the price of
apples their father had planted forty trees on the island and each year the frost took half of the
blossoms while wasps took half of what remained the younger brother wanted to sell the land and buy
a workshop in town where he could repair engines and pumps the older one said that an orchard is
worth more than money since it feeds you even when nobody wants to pay neither of them noticed that
the dog had eaten their lunch when the hills came into view the sun broke through and turned every
wave to silver passengers stood up stretched their arms and began to search for bags and hats under
the wooden seats the captain closed his book rang the bell twice and brought the ferry so gently
against the stones that a full cup on the table did not spill a single drop
"""

WORDS: tuple[str, ...] = tuple(TEXT.split())
VOCABULARY: tuple[str, ...] = tuple(dict.fromkeys(WORDS))
