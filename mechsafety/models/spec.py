"""What to open, as settings: a Hugging Face id, a folder, or an organism, with its revision."""

from typing import Any, Literal

from pydantic import Field, GetJsonSchemaHandler, model_serializer, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from mechsafety.core.config import FrozenConfig, with_short_form

Quantization = Literal["none", "4bit", "8bit"]


class ModelSpec(FrozenConfig):
    """One model of an experiment. In YAML also the short form `org/name@revision`, or a folder."""

    id: str = Field(min_length=1)
    """Hugging Face id (`org/name`), a folder with `config.json`, or an organism's name."""
    revision: str | None = None
    """Branch, tag or commit of the model on the Hub; the resolved commit goes into the record."""
    adapter: str | None = None
    """Hub id or folder of a PEFT adapter that is put on the model."""
    adapter_revision: str | None = None
    """Branch, tag or commit of the adapter."""
    quantization: Quantization = "none"
    """`4bit` or `8bit` loads through bitsandbytes. Arms that differ in it are named in findings."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        name, at, revision = given.rpartition("@")
        if at and _is_hub_revision(name, revision):
            return {"id": name, "revision": revision}
        return {"id": given}

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return with_short_form(handler(schema), "Organism, folder, or `org/name@revision`.")

    @model_serializer
    def _without_defaults(self) -> dict[str, Any]:
        # Equal specs so have equal hashes, however long the form in which they were written.
        fields = type(self).model_fields
        return {key: value for key, value in self if value != fields[key].default}

    def __str__(self) -> str:
        text = self.id if self.revision is None else f"{self.id}@{self.revision}"
        if self.adapter is not None:
            text += f" + {self.adapter}"
            text += f"@{self.adapter_revision}" if self.adapter_revision else ""
        return text if self.quantization == "none" else f"{text} ({self.quantization})"


def _is_hub_revision(name: str, revision: str) -> bool:
    """Organisms write `name@seed=3`, and a folder's path may hold an @ of its own."""
    is_path = name.startswith(("/", "./", "../", "~"))
    return bool(name and revision) and not is_path and "=" not in revision
