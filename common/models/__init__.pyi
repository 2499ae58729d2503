from .base import BaseLanguageModel as BaseLanguageModel
from .base import BaseModel as BaseModel
from .classifier import Classifier as Classifier
from .config import DecoderConfig as DecoderConfig
from .decoder import Decoder as Decoder
from .hub.load import load_pretrained as load_pretrained
from .lora import add_lora as add_lora
from .lora import merge_lora as merge_lora
