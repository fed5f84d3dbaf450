"""The engines that capax is compared with, all behind the same few calls."""
