from .base import BaseLanguageModel as BaseLanguageModel
from .base import BaseModel as BaseModel
from .classifier import Classifier as Classifier
from .config import DecoderConfig as DecoderConfig
from .decoder import Decoder as Decoder
from .hub.load import load_pretrained as load_pretrained
