"""The correspondence of our parameters and the tensors of a Hugging Face file."""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class TensorMapping:
    """One of our leaves and the tensor that holds it.

    Our leaf is a vector, or a matrix [inputs, outputs] whose inputs or outputs may be several axes (heads x head size).
    """

    leaf: str  # e.g. "blocks/attention/query", which has a leading layer axis
    name: str  # in the file; {n} is the layer
    inputs: int = 0  # number of leading axes of our leaf that are the matrix's inputs; 0 for a vector
    transposed: bool = False  # the file stores [outputs, inputs]
    part: tuple[int, int] = (0, 1)  # (i, count): our leaf is part i of `count` equal parts of the file's last axis

    def file_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the file's tensor for a leaf of ours with this shape."""
        matrix = self._matrix_shape(shape)
        all_parts = (*matrix[:-1], matrix[-1] * self.part[1])
        return all_parts[::-1] if self.transposed else all_parts

    def from_file(self, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Our leaf, of this shape, from the file's tensor."""
        matrix = tensor.T if self.transposed else tensor
        return np.split(matrix, self.part[1], axis=-1)[self.part[0]].reshape(shape)

    def to_file(self, leaf: np.ndarray) -> np.ndarray:
        """The file's layout of our leaf: of one part, where the file's tensor has several."""
        matrix = leaf.reshape(self._matrix_shape(leaf.shape))
        return matrix.T if self.transposed else matrix

    def _matrix_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if not self.inputs:
            return (math.prod(shape),)
        return math.prod(shape[: self.inputs]), math.prod(shape[self.inputs :])


def linear(leaf: str, name: str, inputs: int = 1) -> TensorMapping:
    """The mapping of a matrix that torch's Linear stores, [outputs, inputs]."""
    return TensorMapping(leaf, f"{name}.weight", inputs=inputs, transposed=True)


def vector(leaf: str, name: str) -> TensorMapping:
    """The mapping of a bias or of a norm's scale."""
    return TensorMapping(leaf, name)
