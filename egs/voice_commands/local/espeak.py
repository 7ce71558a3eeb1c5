"""Text to samples with the espeak-ng library that the espeakng-loader wheel bundles."""

import ctypes
import os
import tempfile
from pathlib import Path
from typing import List

import numpy as np

from kdlib.errors import RecipeError

_SYNCHRONOUS = 2
_DONT_EXIT = 0x8000
_LONGEST_PATH = 159  # bytes: of a longer one the library takes no notice, and looks where its wheel was built
_CHARS_UTF8 = 1
_END_PAUSE = 0x1000
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_POSITION_CHARACTER = 1
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Synthesizer:
    """One espeak-ng engine; the library keeps global state, so a process holds at most one.

    The samples of an utterance depend on the random seed and on everything synthesised before it in the process:
    the same calls in a fresh process give the same samples, the same call at another place need not.
    """

    def __init__(self, seed: int):
        """Start the engine with a random ``seed``; raises :class:`RecipeError` when the wheel is missing."""
        try:
            import espeakng_loader
        except ImportError:
            raise RecipeError("the package espeakng-loader is missing: run tools/install.sh, or "
                              "`pip install espeakng-loader` in this environment") from None
        try:
            self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        except OSError as error:
            raise RecipeError(f"espeak-ng cannot be loaded ({error}): reinstall espeakng-loader") from None
        self._chunks: List[bytes] = []
        # The engine keeps a bare pointer: this attribute keeps the callback alive.
        self._callback = _CALLBACK(self._collect)
        data = espeakng_loader.get_data_path()
        if len(os.fsencode(data)) > _LONGEST_PATH:
            self._folder = tempfile.TemporaryDirectory()  # as long as the engine, which reads voices when they are asked for
            os.symlink(os.path.abspath(data), os.path.join(self._folder.name, "data"))
            data = os.path.join(self._folder.name, "data")
        self.rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(data), _DONT_EXIT)
        if self.rate <= 0:
            raise RecipeError(f"espeak-ng finds no data at {data}: reinstall espeakng-loader; a path of more than "
                              f"{_LONGEST_PATH} characters needs a shorter TMPDIR")
        self._variants = Path(data, "voices", "!v")
        self._library.espeak_SetSynthCallback(self._callback)
        if self._library.espeak_ng_SetRandSeed(ctypes.c_long(seed)) != 0:
            raise RecipeError("espeak-ng refuses the random seed: install espeakng-loader 0.2 or later")

    def _collect(self, samples, count, _events) -> int:
        if count > 0:
            self._chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    def __call__(self, text: str, voice: str, words_per_minute: int = 140, pitch: int = 50,
                 pitch_range: int = 50, volume: int = 60) -> np.ndarray:
        """Return ``text`` as float32 samples in [-1, 1) at :attr:`rate` Hz, shape (samples,).

        ``voice`` is a language and a variant, as in ``en-us+f3``. ``pitch``, ``pitch_range`` and ``volume`` run from
        0 to 100. The volume is below espeak-ng's default of 100, at which some voices clip.
        """
        _, plus, variant = voice.partition("+")
        # Of a variant that is not there the library says nothing, and speaks with the language's default voice.
        if (plus and not (self._variants / variant).is_file()) or \
                self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise RecipeError(f"espeak-ng has no voice {voice}: reinstall espeakng-loader, whose data lacks it")
        # Setting a voice resets the parameters, so they follow it.
        for name, value in ((_RATE, words_per_minute), (_VOLUME, volume), (_PITCH, pitch), (_RANGE, pitch_range)):
            self._library.espeak_SetParameter(name, int(value), 0)
        self._chunks.clear()
        encoded = text.encode("utf-8")
        status = self._library.espeak_Synth(encoded, ctypes.c_size_t(len(encoded) + 1), 0, _POSITION_CHARACTER, 0,
                                            _CHARS_UTF8 | _END_PAUSE, None, None)
        if status != 0:
            raise RecipeError(f"espeak-ng cannot say {text!r} with voice {voice}")
        return np.frombuffer(b"".join(self._chunks), dtype="<i2").astype(np.float32) / 32768.0
