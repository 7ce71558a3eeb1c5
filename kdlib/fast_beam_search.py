"""k2's fast beam search (Kang et al. 2022, arXiv 2211.00484): all paths that share a context advance together.

Needs k2. It keeps a lattice, of which the best path is read at the end; as in the other searches a frame emits at most one
token.
"""

from typing import List, Tuple

import torch
from torch import Tensor

from kdlib.decoding import Hypothesis, Search
from kdlib.errors import RecipeError
from kdlib.rnnt import k2_backend
from kdlib.transducer import Transducer

# icefall's usual settings.
BEAM, MAX_CONTEXTS, MAX_STATES = 20.0, 8, 64


def load_k2():
    """The k2 module; a :class:`RecipeError` where it cannot be imported."""
    module, reason = k2_backend.load()
    if module is None:
        raise RecipeError(f"fast_beam_search needs k2, which cannot be imported ({reason}); make its environment with "
                          "tools/install.sh --k2 and use that, or choose modified_beam_search")
    return module


class FastBeamSearch(Search):
    """A k2 decoding stream over the graph that allows every token at any time."""

    def __init__(self, context_size: int = 2, before: Tuple[int, ...] = ()) -> None:
        if before:
            raise ValueError("a search of k2's begins without labels: use greedy_search or modified_beam_search")
        super().__init__(context_size)
        self.stream = None
        self.config = None
        self.heard: List[bool] = []  # of each frame that k2 was given, whether it was one of the audio
        self.read = Hypothesis()

    @staticmethod
    @torch.no_grad()
    def advance(searches: List["FastBeamSearch"], model: Transducer, encoder_out: Tensor, lengths: Tensor,
                beam: float = BEAM, max_contexts: int = MAX_CONTEXTS, max_states: int = MAX_STATES,
                unk_id: int = 2) -> None:
        """Take each search through its next frames.

        Args:
            encoder_out: (N, T, C); lengths: (N,) int64.
            beam: paths whose log-probability is so far below the best one's are dropped.
            max_contexts, max_states: kept a frame for each utterance.
        """
        k2 = load_k2()
        config = k2.RnntDecodingConfig(vocab_size=model.vocab_size, decoder_history_len=model.predictor.context_size,
                                       beam=beam, max_contexts=max_contexts, max_states=max_states)
        graph = k2.trivial_graph(model.vocab_size - 1, encoder_out.device)
        for search in searches:
            if search.stream is None:
                search.stream, search.config = k2.RnntDecodingStream(graph), config
        encoded = model.joiner.encoder_proj(encoder_out)
        counts, done = lengths.tolist(), 0
        # k2 advances streams together; those that have no more frames must not be among them.
        for until in sorted(set(counts) - {0}):
            rows = torch.tensor([row for row, count in enumerate(counts) if count >= until], device=encoded.device)
            streams = k2.RnntDecodingStreams([searches[row].stream for row in rows.tolist()], config)
            for frame in range(done, until):
                shape, contexts = streams.get_contexts()
                predicted = model.joiner.predictor_proj(model.predictor(_begun(contexts.long(), model.blank_id)))[:, 0]
                owners = rows[shape.row_ids(1).long()]
                log_probs = model.joiner(encoded[owners, frame], predicted).float().log_softmax(-1)
                # <unk> is a second blank, as in the other searches: of the two the likelier is on the best path.
                log_probs[:, 0] = torch.maximum(log_probs[:, 0], log_probs[:, unk_id])
                log_probs[:, unk_id] = float("-inf")
                streams.advance(log_probs)
            streams.terminate_and_flush_to_streams()
            done = until
        for search, count in zip(searches, counts):
            search.num_frames += count
            search.heard += [True] * count

    @property
    def best(self) -> Hypothesis:
        """The best path of the lattice, by the log-probability of that path alone."""
        if self.heard and self.heard[-1]:
            self.read = self._read()
        return self.read

    def _read(self) -> Hypothesis:
        k2 = load_k2()
        streams = k2.RnntDecodingStreams([self.stream], self.config)
        # k2's lattice lacks the last frame. One more, in which nothing can be but a blank, takes that loss.
        _, contexts = streams.get_contexts()
        nothing = torch.full((len(contexts), self.config.vocab_size), float("-inf"), device=contexts.device)
        nothing[:, 0] = 0.0
        streams.advance(nothing)
        streams.terminate_and_flush_to_streams()
        self.heard.append(False)
        path = k2.shortest_path(streams.format_output([len(self.heard)], allow_partial=True), use_double_scores=True)
        labels = [label for label, heard in zip(path.labels.tolist(), self.heard) if heard]
        frames = tuple(frame for frame, label in enumerate(labels) if label > 0)
        return Hypothesis(float(path.scores.double().sum()), tuple(labels[frame] for frame in frames), frames)


def _begun(contexts: Tensor, blank_id: int) -> Tensor:
    """k2 fills a young context with 0; the predictor was trained with one blank there and nothing (-1) before it."""
    young = (contexts == 0).long().cumprod(dim=1).sum(dim=1, keepdim=True)  # leading zeros
    place = torch.arange(contexts.size(1), device=contexts.device)
    contexts = contexts.masked_fill(place < young, blank_id)
    return contexts.masked_fill(place < young - 1, -1)
