"""An ONNX model behind MLServer, as its documentation writes a custom runtime. Runs in MLServer's own environment.

It lies beside model-settings.json in the model's folder. Tensors come and go by MLServer's own numpy codec, texts by
its string codec.
"""

import numpy as np
import onnxruntime as ort
from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.errors import InferenceError
from mlserver.types import InferenceResponse, MetadataTensor
from mlserver.utils import get_model_uri
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

DATATYPES = {
    "tensor(float)": "FP32", "tensor(double)": "FP64", "tensor(float16)": "FP16", "tensor(bool)": "BOOL",
    "tensor(int8)": "INT8", "tensor(int16)": "INT16", "tensor(int32)": "INT32", "tensor(int64)": "INT64",
    "tensor(uint8)": "UINT8", "tensor(uint16)": "UINT16", "tensor(uint32)": "UINT32", "tensor(uint64)": "UINT64",
    "tensor(string)": "BYTES",
}  # fmt: skip


class OnnxModel(MLModel):
    """The model."""

    async def load(self) -> bool:
        """Load it, in each process that runs inference."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        file = await get_model_uri(self._settings)
        self.session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.output_names = [one.name for one in self.session.get_outputs()]
        self.inputs = [described(one) for one in self.session.get_inputs()]
        self.outputs = [described(one) for one in self.session.get_outputs()]
        return True

    async def predict(self, payload):
        """One run: of one request, or of all that adaptive batching merged."""
        try:
            feeds = {one.name: decoded(one) for one in payload.inputs}
            ran = self.session.run(self.output_names, feeds)
        except (InvalidArgument, ValueError) as exc:
            raise InferenceError(str(exc)) from exc
        outputs = [encoded(name, array) for name, array in zip(self.output_names, ran, strict=True)]
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=outputs)


def described(value):
    """A tensor as the metadata has it."""
    shape = [size if isinstance(size, int) else -1 for size in value.shape]
    return MetadataTensor(name=value.name, datatype=DATATYPES[value.type], shape=shape)


def decoded(tensor):
    """An input as an array."""
    if tensor.datatype != "BYTES":
        return NumpyCodec.decode_input(tensor)
    return np.array(StringCodec.decode_input(tensor), dtype=object).reshape(tensor.shape)


def encoded(name, array):
    """An array as an output."""
    if array.dtype != object:
        return NumpyCodec.encode_output(name, array)
    texts = StringCodec.encode_output(name, array.ravel().tolist())
    texts.shape = list(array.shape)
    return texts
