from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PredictRequest(_message.Message):
    __slots__ = ("model_name", "model_version", "id", "images", "top_k", "crops", "crop_side")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    CROPS_FIELD_NUMBER: _ClassVar[int]
    CROP_SIDE_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    model_version: str
    id: str
    images: _containers.RepeatedScalarFieldContainer[bytes]
    top_k: int
    crops: bool
    crop_side: int
    def __init__(self, model_name: _Optional[str] = ..., model_version: _Optional[str] = ..., id: _Optional[str] = ..., images: _Optional[_Iterable[bytes]] = ..., top_k: _Optional[int] = ..., crops: _Optional[bool] = ..., crop_side: _Optional[int] = ...) -> None: ...

class PredictResponse(_message.Message):
    __slots__ = ("model_name", "model_version", "id", "results", "error")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    model_version: str
    id: str
    results: _containers.RepeatedCompositeFieldContainer[ImageResult]
    error: Failure
    def __init__(self, model_name: _Optional[str] = ..., model_version: _Optional[str] = ..., id: _Optional[str] = ..., results: _Optional[_Iterable[_Union[ImageResult, _Mapping]]] = ..., error: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...

class ImageResult(_message.Message):
    __slots__ = ("prediction", "error")
    PREDICTION_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    prediction: Prediction
    error: Failure
    def __init__(self, prediction: _Optional[_Union[Prediction, _Mapping]] = ..., error: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class Prediction(_message.Message):
    __slots__ = ("image_width", "image_height", "classes", "transforms", "input_box", "sequence")
    IMAGE_WIDTH_FIELD_NUMBER: _ClassVar[int]
    IMAGE_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    TRANSFORMS_FIELD_NUMBER: _ClassVar[int]
    INPUT_BOX_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    image_width: int
    image_height: int
    classes: _containers.RepeatedCompositeFieldContainer[ClassProbability]
    transforms: _containers.RepeatedCompositeFieldContainer[Transform]
    input_box: Box
    sequence: Sequence
    def __init__(self, image_width: _Optional[int] = ..., image_height: _Optional[int] = ..., classes: _Optional[_Iterable[_Union[ClassProbability, _Mapping]]] = ..., transforms: _Optional[_Iterable[_Union[Transform, _Mapping]]] = ..., input_box: _Optional[_Union[Box, _Mapping]] = ..., sequence: _Optional[_Union[Sequence, _Mapping]] = ...) -> None: ...

class Sequence(_message.Message):
    __slots__ = ("text", "probability", "positions")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    text: str
    probability: float
    positions: _containers.RepeatedCompositeFieldContainer[Position]
    def __init__(self, text: _Optional[str] = ..., probability: _Optional[float] = ..., positions: _Optional[_Iterable[_Union[Position, _Mapping]]] = ...) -> None: ...

class Position(_message.Message):
    __slots__ = ("classes",)
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    classes: _containers.RepeatedCompositeFieldContainer[ClassProbability]
    def __init__(self, classes: _Optional[_Iterable[_Union[ClassProbability, _Mapping]]] = ...) -> None: ...

class Box(_message.Message):
    __slots__ = ("left", "top", "right", "bottom")
    LEFT_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    RIGHT_FIELD_NUMBER: _ClassVar[int]
    BOTTOM_FIELD_NUMBER: _ClassVar[int]
    left: float
    top: float
    right: float
    bottom: float
    def __init__(self, left: _Optional[float] = ..., top: _Optional[float] = ..., right: _Optional[float] = ..., bottom: _Optional[float] = ...) -> None: ...

class ClassProbability(_message.Message):
    __slots__ = ("index", "label", "probability")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    index: int
    label: str
    probability: float
    def __init__(self, index: _Optional[int] = ..., label: _Optional[str] = ..., probability: _Optional[float] = ...) -> None: ...

class Transform(_message.Message):
    __slots__ = ("name", "kind", "place", "theta", "theta_shape", "quad", "outline", "pose", "output_width", "output_height", "regularization", "crop")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    THETA_FIELD_NUMBER: _ClassVar[int]
    THETA_SHAPE_FIELD_NUMBER: _ClassVar[int]
    QUAD_FIELD_NUMBER: _ClassVar[int]
    OUTLINE_FIELD_NUMBER: _ClassVar[int]
    POSE_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_WIDTH_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    REGULARIZATION_FIELD_NUMBER: _ClassVar[int]
    CROP_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    place: str
    theta: _containers.RepeatedScalarFieldContainer[float]
    theta_shape: _containers.RepeatedScalarFieldContainer[int]
    quad: _containers.RepeatedCompositeFieldContainer[Point]
    outline: _containers.RepeatedCompositeFieldContainer[Point]
    pose: Pose
    output_width: int
    output_height: int
    regularization: float
    crop: bytes
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., place: _Optional[str] = ..., theta: _Optional[_Iterable[float]] = ..., theta_shape: _Optional[_Iterable[int]] = ..., quad: _Optional[_Iterable[_Union[Point, _Mapping]]] = ..., outline: _Optional[_Iterable[_Union[Point, _Mapping]]] = ..., pose: _Optional[_Union[Pose, _Mapping]] = ..., output_width: _Optional[int] = ..., output_height: _Optional[int] = ..., regularization: _Optional[float] = ..., crop: _Optional[bytes] = ...) -> None: ...

class Point(_message.Message):
    __slots__ = ("x", "y")
    X_FIELD_NUMBER: _ClassVar[int]
    Y_FIELD_NUMBER: _ClassVar[int]
    x: float
    y: float
    def __init__(self, x: _Optional[float] = ..., y: _Optional[float] = ...) -> None: ...

class Pose(_message.Message):
    __slots__ = ("rotation_degrees", "scale", "shear", "translation", "determinant", "inside_ratio")
    ROTATION_DEGREES_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    SHEAR_FIELD_NUMBER: _ClassVar[int]
    TRANSLATION_FIELD_NUMBER: _ClassVar[int]
    DETERMINANT_FIELD_NUMBER: _ClassVar[int]
    INSIDE_RATIO_FIELD_NUMBER: _ClassVar[int]
    rotation_degrees: float
    scale: _containers.RepeatedScalarFieldContainer[float]
    shear: float
    translation: _containers.RepeatedScalarFieldContainer[float]
    determinant: float
    inside_ratio: float
    def __init__(self, rotation_degrees: _Optional[float] = ..., scale: _Optional[_Iterable[float]] = ..., shear: _Optional[float] = ..., translation: _Optional[_Iterable[float]] = ..., determinant: _Optional[float] = ..., inside_ratio: _Optional[float] = ...) -> None: ...
