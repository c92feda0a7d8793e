"""Using a trained model: questions to answers, answers to pictures."""

from mg_llava.inference.drawing import draw_answer
from mg_llava.inference.predictor import Predictor
from mg_llava.inference.requests import Answer, Request

__all__ = ["Answer", "Predictor", "Request", "draw_answer"]
