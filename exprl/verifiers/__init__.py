"""Verifiers: is the final answer of a response right."""

from exprl.verifiers.base import Verifier
from exprl.verifiers.by_domain import ByDomainVerifier
from exprl.verifiers.choice import ChoiceVerifier
from exprl.verifiers.exact import ExactVerifier
from exprl.verifiers.mathematics import MathVerifier
from exprl.verifiers.quantity import QuantityVerifier

__all__ = ["ByDomainVerifier", "ChoiceVerifier", "ExactVerifier", "MathVerifier", "QuantityVerifier", "Verifier"]
