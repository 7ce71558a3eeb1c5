#!/usr/bin/env python3
"""Transcribe audio with an exported model, streaming.

    tools/transcribe.py --model egs/voice_commands/exp/export/stage3 --int8 a.wav b.flac
    arecord -q -t raw -f S16_LE -r 16000 -c 1 | tools/transcribe.py --model ... --live -

A file may have any rate and number of channels that soundfile reads; channels are averaged. '-' is raw PCM from standard
input (16 bit, little endian, one channel), 'mic' the microphone, where the package sounddevice is there; Ctrl-C ends
either of them, and what was heard until then is printed.

Needs no torch: on a device `pip install numpy soundfile sherpa-onnx` and, for kdlib, `pip install --no-deps .` do.
"""

import environment  # noqa: F401  first, since the rest needs what it finds

import argparse
import contextlib
import io
import itertools
import math
import os
import re
import signal
import sys
from pathlib import Path

import numpy as np

from kdlib.audio_header import MP3_SLACK, UNKNOWN_LENGTH, cut_short, unread
from kdlib.errors import RecipeError, in_one_line, known_failure, run_main
from kdlib.scoring import split_characters
from kdlib.sherpa import (METHODS, RATES, SUBSAMPLING, chosen_beam, decode_ready, make_recognizer, needed, pieces, read_model,
                          tail)

BLOCK_SECONDS = 0.1
MOST, LOUD = 65536, 16  # beyond the first no value is a sample, beyond the second it is none of full scale 1
# How files of audio begin. Of MP3 without a tag only those that count their frames: the first bytes of the others may well be
# samples.
HEADS = {"WAV": rb"RIF[FX]|RF64", "FLAC": rb"fLaC", "Ogg": rb"OggS", "AIFF": rb"FORM", "CAF": rb"caff", "W64": rb"riff",
         "AU": rb"\.snd", "NIST SPHERE": rb"NIST", "MP3": rb"ID3[\2-\4]|\xff[\xe2-\xff].{2,38}?(?:Xing|Info|VBRI)",
         "WebM or Matroska": rb"\x1aE\xdf\xa3", "MP4": rb".{4}ftyp"}
HEAD_BYTES = 48  # the most that are looked at
BACK_FRAMES = 8  # of 40 ms, which the next segment hears once more: a word's first label comes that long after it began
# Seconds: a segment so long ends where it has had no label for the second of them. The 300 at which the runtime ends it are for
# speech without such pauses: they may come in the midst of a word, either half of which may be heard as a word.
LONG, PAUSE = 240, 0.6
CANCELLED = 0.01  # of the energy of a file's channels: where their mean has less, they are of opposite sign
READ_SECONDS = 1  # of a file at a time: an hour takes no more memory than a minute, and damage costs no more than this


def get_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("audio", nargs="+", help="audio files, '-' or 'mic'")
    parser.add_argument("--model", type=Path, required=True, help="folder of stage 9, such as exp/export/stage3")
    parser.add_argument("--int8", action="store_true", help="the quantised files")
    parser.add_argument("--method", choices=METHODS, default=METHODS[0], help="the search (greedy_search)")
    parser.add_argument("--beam", type=int, help="hypotheses of modified_beam_search (4)")
    parser.add_argument("--threads", type=int, default=1, help="of the runtime (1)")
    parser.add_argument("--timestamps", action="store_true", help="print when each word began, in seconds")
    parser.add_argument("--live", action="store_true", help="print the words as they are recognised")
    parser.add_argument("--rate", type=int, help="of the raw PCM on standard input, in Hz (the model's)")
    return parser.parse_intermixed_args()


def file_blocks(path):
    """(rate, blocks of samples (n,) float32 in [-1, 1]) of an audio file; an error after the last block says what the file
    lacks."""
    soundfile = needed("soundfile", "soundfile")
    if Path(path).is_dir():
        raise RecipeError(f"{path} is a folder: give the files in it")
    if not Path(path).exists():
        raise RecipeError(f"{path}: there is no such file")
    if not Path(path).is_file():
        raise RecipeError(f"{path} is no regular file, which can be read from any place: pipe raw PCM into '-'")
    headerless = (f"{path} is by its name samples without a header, whose rate nothing tells: pipe it into '-', with its own "
                  f"--rate, if it is 16 bit and one channel (transcribe.py --rate 16000 - < {path}), or convert it to WAV")
    if Path(path).suffix.lower() == ".raw":  # which soundfile goes by, whatever is in the file
        raise RecipeError(headerless)
    try:
        source = soundfile.SoundFile(os.fsencode(path))  # whatever bytes the name is made of
    except Exception as error:
        raise RecipeError(f"{path} cannot be read as audio ({in_one_line(error)})") from None
    if source.format == "RAW":  # libsndfile takes .vox, .gsm, .au and .snd for samples of 8 kHz where they have no header
        raise RecipeError(headerless)
    if source.frames == UNKNOWN_LENGTH:
        raise RecipeError(f"{path} does not tell its length in its header, so that its end cannot be read: write it again (sox "
                          "a.flac b.flac)")
    check_rate(source.samplerate, path)
    # Else soundfile seeks after each block, to where it is: a decoder of MP3 forgets what the next samples are made of, and
    # libmpg123 writes of errors that are in no file.
    source.seekable = lambda: False

    def blocks():
        length = READ_SECONDS * source.samplerate
        count = 0
        held = left = 0.0  # the energy of the channels, and that of their mean
        with source:
            while True:
                try:
                    block = source.read(length, dtype="float32", always_2d=True)
                except Exception as error:
                    raise RecipeError(f"{path} is damaged: what follows {count / source.samplerate:.2f} s cannot be read "
                                      f"({in_one_line(error)})") from None
                if len(block) == 0:
                    break
                count += len(block)
                with np.errstate(all="ignore"):  # what is no number then is counted by whom it is given to
                    mean = block.mean(1)
                    held += float(np.square(block).mean(1).sum())
                    left += float(np.square(mean).sum())
                yield mean
        if left < CANCELLED * held:
            print(f"warning: {path}: its channels cancel each other in their mean, which is heard: give one of them (sox a.wav "
                  "b.wav remix 1)", file=sys.stderr)
        found = cut_short(Path(path))
        wrong = f"is cut short: {found}" if found else unread(Path(path), count, source.frames, MP3_SLACK)
        if wrong:
            raise RecipeError(f"{path} {wrong}" + ("" if count else "; none of its sound was read"))
        if count == 0:
            print(f"warning: {path} is empty: there is no sound in it", file=sys.stderr)
    return source.samplerate, blocks()


def check_rate(rate, name):
    if not RATES[0] <= rate <= RATES[1]:
        raise RecipeError(f"{name}: {rate} samples a second cannot be taken: it may be from {RATES[0]} to {RATES[1]}")


def until_interrupted(blocks):
    """The blocks of a source that has no end of its own: Ctrl-C is the end, whether it comes while a block is awaited or
    while one is worked on."""
    ended = waiting = False

    def end(number, frame):
        nonlocal ended
        ended = True
        if waiting:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, end)
    try:
        while not ended:
            waiting = True
            block = next(blocks, None)
            waiting = False
            if block is None:
                return
            yield block
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGINT, before)


def standard_input(rate):
    """Raw PCM as it comes."""
    if sys.stdin is None:
        raise RecipeError("-: standard input is closed: pipe raw PCM into it")
    with contextlib.suppress(io.UnsupportedOperation):  # of what is no file, but stands in for one
        os.set_blocking(sys.stdin.buffer.fileno(), True)  # else a pause of the writer looks like the end
    size = 2 * max(1, int(BLOCK_SECONDS * rate))
    rest, begun = b"", False
    while True:
        data = sys.stdin.buffer.read1(size)
        rest += data
        if data and not begun and len(rest) < HEAD_BYTES:
            continue
        kinds = [] if begun else [kind for kind, head in HEADS.items() if re.match(head, rest, re.DOTALL)]
        if kinds:
            raise RecipeError(f"-: this is a file ({kinds[0]}), and no raw PCM: give it by its name, or decode it on the way "
                              f"(ffmpeg -i - -f s16le -ac 1 -ar {rate} -)")
        begun = True
        whole = len(rest) // 2 * 2
        block, rest = rest[:whole], rest[whole:]
        yield np.frombuffer(block, dtype="<i2").astype(np.float32) / 32768
        if not data:
            if rest:
                print("warning: -: the last byte is half a sample, and was left out", file=sys.stderr)
            return


def microphone(rate):
    """The same from the microphone."""
    try:
        import sounddevice
    except (ImportError, OSError):
        raise RecipeError("the microphone needs the package sounddevice and PortAudio: pip install sounddevice; or pipe "
                          "raw PCM into '-', for instance from arecord -t raw") from None
    try:
        source = sounddevice.InputStream(channels=1, dtype="float32", samplerate=rate)
    except sounddevice.PortAudioError as error:
        raise RecipeError(f"the microphone cannot be opened at {rate} Hz ({error}); `python -m sounddevice` lists the "
                          "devices") from None

    def blocks():
        losses = 0
        try:
            with source:
                while True:
                    block, lost = source.read(int(BLOCK_SECONDS * rate))
                    losses += lost  # PortAudio has thrown sound away since the last call
                    yield block[:, 0]
        except sounddevice.PortAudioError as error:
            raise RecipeError(f"the microphone cannot be read any more ({error})") from None
        finally:
            if losses:
                print(f"warning: mic: {losses} times sound was lost, since this machine did not keep up: take a smaller model "
                      "or --int8", file=sys.stderr)
    return blocks()


def samples_until(seconds, rate):
    """How many samples, of the model's ``rate`` a second, the runtime has passed at so many seconds of its own clock. That
    counts 10 ms for each of its frames, which are a whole number of samples apart, also where that is not quite so long."""
    return round(seconds * 100 / SUBSAMPLING) * SUBSAMPLING * (rate // 100)


def words_of(recognizer, stream, begin, rate):
    """[word, seconds at which it began, whether a blank stands before it] of what the segment that starts at sample ``begin``
    of the model's ``rate`` holds so far; in the tokens a blank begins a word, and so does each Chinese or Japanese
    character."""
    words = []
    for piece, when in zip(pieces(recognizer, stream), recognizer.timestamps(stream)):
        seconds = (begin + samples_until(when, rate)) / rate
        if piece.startswith(" ") or not words:
            words.append(["", seconds, True])
        text = words[-1][0]
        first, *others = split_characters([text + piece.strip()]) or [text]
        words[-1][0] = first
        words += [[other, seconds, False] for other in others]
    return [word for word in words if word[0]]


class Printer:
    """Prints one line an input: at its end, or word by word. A word is shown once the next one has begun, or its segment
    has ended; where the search may think better of it, not before two results in a row have it. Where it does so all the
    same, the line is printed anew, so that the last one of an input is right."""

    def __init__(self, name, live, timestamps, revises=False):
        self.name, self.live, self.timestamps, self.revises = name, live, timestamps, revises
        self.last = []  # words of this segment, as the result before has them
        self.text = ""  # of the segments that have ended
        self.printed = ""
        if live:
            print(f"{name}:", end="", flush=True)

    def show(self, words, ended=False):
        """The words of the segment so far, or all of them where it has ended."""
        certain = words if ended else words[:-1]
        if self.revises and not ended:
            certain = [word for word, _ in itertools.takewhile(lambda pair: pair[0][::2] == pair[1][::2],
                                                               zip(certain, self.last))]
        text = self.text + "".join(f" [{seconds:.2f}] {word}" if self.timestamps else f" {word}" if blank else word
                                   for word, seconds, blank in certain)
        self.last = words
        if ended:
            self.last, self.text = [], text
        if not self.live or (not ended and self.printed.startswith(text)):
            return
        if not text.startswith(self.printed):
            print(f"\n{self.name}:", end="")
            self.printed = ""
        print(text[len(self.printed):], end="", flush=True)
        self.printed = text

    def end(self):
        print("" if self.live else f"{self.name}:{self.text}", flush=True)


class Heard:
    """What was remarkable about the samples of an input."""

    def __init__(self):
        self.samples = self.strange = 0
        self.loudest = 0.0

    def usable(self, block):
        """The block (n,) float32; what is no sample in it is silence."""
        good = np.abs(block) <= MOST  # false of nan as well
        block = np.where(good, block, 0.0).astype(np.float32)
        self.samples += len(block)
        self.strange += int((~good).sum())
        self.loudest = max(self.loudest, float(np.abs(block).max(initial=0.0)))
        return block

    def warn(self, name):
        if self.strange:
            print(f"warning: {name}: {self.strange} samples are not finite or beyond {MOST}, and were taken for silence",
                  file=sys.stderr)
        if self.loudest > LOUD:
            print(f"warning: {name}: samples go up to {self.loudest:.0f} where 1 is full scale, as if they were integers: "
                  "divide them, by 32768 for 16 bit", file=sys.stderr)
        if name == "-" and not self.samples:
            print("warning: -: there was no sound in it", file=sys.stderr)


def resampled(blocks, rate, model_rate, heard):
    """The blocks at the model's rate, each as it comes, by the filter of sherpa-onnx, which itself would write messages between
    the words. A sharper one leaves next to nothing above half of a lower rate: no recording is so, and models err over it."""
    if rate == model_rate:
        yield from map(heard.usable, blocks)
        return
    divisor = math.gcd(rate, model_rate)
    up, down = model_rate // divisor, rate // divisor
    band = 0.99 * min(1.0, up / down)  # of the frequencies that there are
    reach = 6 / band  # samples on each side: six zeros of the sinc, under a Hann window
    half = int(reach)
    times = np.arange(-half, half + 2) - np.arange(up)[:, None] / up  # of the samples around each of ``up`` places
    window = np.where(np.abs(times) < reach, 0.5 + 0.5 * np.cos(np.pi * times / reach), 0.0)
    weights = (band * np.sinc(band * times) * window).astype(np.float32)
    kept, begin, made = np.zeros(half, dtype=np.float32), -half, 0  # samples, the number of their first, and those yielded
    for block in itertools.chain(map(heard.usable, blocks), [np.zeros(half + 1, dtype=np.float32)]):
        kept = np.concatenate([kept, block])
        whole = begin + len(kept) - half - 1  # places before this one have all their samples
        places, phases = np.divmod(np.arange(made, max(made, -(-whole * up // down))) * down, up)
        made += len(places)
        if len(places):
            around = np.lib.stride_tricks.sliding_window_view(kept, 2 * half + 2)[places - half - begin]
            yield np.einsum("pt,pt->p", around, weights[phases])
        begin, kept = made * down // up - half, kept[made * down // up - half - begin:]


def transcribe(recognizer, about, name, rate, blocks, args):
    """Print what is heard in the blocks. An error of theirs is the end of them, raised when what came before it is
    printed."""
    problem = None

    def until_error():
        nonlocal problem
        try:
            yield from blocks
        except RecipeError as error:
            problem = error

    stream = recognizer.create_stream()
    printer = Printer(name, args.live, args.timestamps, revises=args.method != METHODS[0])
    heard = Heard()
    rate, samples = about["sampling_rate"], resampled(until_error(), rate, about["sampling_rate"], heard)
    step, frame = int(BLOCK_SECONDS * rate), samples_until(SUBSAMPLING / 100, rate)
    given = np.zeros(0, dtype=np.float32)  # the last samples that the stream has taken, and those that it has not
    begin = kept = taken = 0  # numbers of samples: where the stream begins and where ``given`` does, and of those taken
    for block in samples:
        for first in range(0, len(block), step):
            stream.accept_waveform(rate, block[first:first + step])
            given = np.concatenate([given, block[first:first + step]])
            while decode_ready(recognizer, stream):
                taken += about["chunk_size"] * frame
                times = recognizer.timestamps(stream)
                said = begin + samples_until(max(times), rate) + frame if times else begin
                ended = recognizer.is_endpoint(stream) or (taken - begin >= LONG * rate and taken - said >= PAUSE * rate)
                if args.live or ended:
                    printer.show(words_of(recognizer, stream, begin, rate), ended)
                # A word that has begun without a label yet is heard from its beginning in the next segment. What has labels is
                # not heard again: they may be as late as that where the length alone has ended the segment.
                forget = max(0, said - kept if ended else 0, taken - BACK_FRAMES * frame - kept)
                given, kept = given[forget:], kept + forget
                if ended:
                    # A stream of its own for each segment: sherpa-onnx's reset keeps the last labels, after which a model
                    # that was trained with single sentences expects none to begin, and words of the next segment are lost.
                    stream, begin, taken = recognizer.create_stream(), kept, kept
                    stream.accept_waveform(rate, given)
    stream.accept_waveform(rate, tail(about, rate))
    stream.input_finished()
    while decode_ready(recognizer, stream):
        pass
    printer.show(words_of(recognizer, stream, begin, rate), ended=True)
    printer.end()
    heard.warn(name)
    if problem:
        raise problem


def main():
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # whoever reads may have enough, as head does: that is no error
    if sys.stderr is not None:
        sys.stderr.reconfigure(errors="surrogateescape")  # for names of files, as standard output is already
    args = get_args()
    if args.rate is not None:
        check_rate(args.rate, "--rate")
        if "-" not in args.audio:
            print("warning: --rate is of raw PCM on '-', which is not asked for: files say their own", file=sys.stderr)
    beam = chosen_beam(args.method, args.beam)
    about = read_model(args.model, args.int8)
    recognizer = make_recognizer(args.model, about, args.int8, args.method, beam, args.threads, endpoints=True)
    failed = 0
    for name in args.audio:
        rate = args.rate or about["sampling_rate"]
        try:
            if name == "-":
                blocks = until_interrupted(standard_input(rate))
            elif name == "mic":
                rate = about["sampling_rate"]
                blocks = until_interrupted(microphone(rate))
            else:
                rate, blocks = file_blocks(name)
            transcribe(recognizer, about, name, rate, blocks, args)
        except (RecipeError, OSError) as error:  # the other files are transcribed all the same
            message = known_failure(error)
            if message is None:
                raise
            print(f"error: {message}", file=sys.stderr)
            failed += 1
        except KeyboardInterrupt:  # nothing of it is kept, so that no other run could go on from here
            print(f"error: interrupted in {name}", file=sys.stderr)
            sys.exit(130)
    if failed:
        raise RecipeError(f"{failed} of {len(args.audio)} could not be transcribed in full")


if __name__ == "__main__":
    run_main(main)
