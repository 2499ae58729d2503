"""Tokenizers with one interface; SentencePiece and tiktoken are imported when used."""

from common.data.tokenizers.base import END_OF_TEXT as END_OF_TEXT
from common.data.tokenizers.base import TokenIds as TokenIds
from common.data.tokenizers.base import Tokenizer as Tokenizer
from common.data.tokenizers.base import TrainableTokenizer as TrainableTokenizer
from common.data.tokenizers.bpe import BPETokenizer as BPETokenizer
from common.data.tokenizers.char import CharTokenizer as CharTokenizer
from common.data.tokenizers.files import find_tokenizer as find_tokenizer
from common.data.tokenizers.files import find_tokenizer_file as find_tokenizer_file
from common.data.tokenizers.files import load_tokenizer as load_tokenizer
from common.data.tokenizers.pretrained import PretrainedTokenizer as PretrainedTokenizer
from common.data.tokenizers.sentence_piece import (
    SentencePieceBPETokenizer as SentencePieceBPETokenizer,
)
from common.data.tokenizers.sentence_piece import SentencePieceTokenizer as SentencePieceTokenizer
from common.data.tokenizers.tiktoken_encoding import TiktokenTokenizer as TiktokenTokenizer

TRAINABLE: dict[str, type[TrainableTokenizer]] = {
    kind.kind: kind
    for kind in (CharTokenizer, BPETokenizer, SentencePieceTokenizer, SentencePieceBPETokenizer)
}
