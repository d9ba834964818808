"""`/v1/users/{id}`: what is known of a user, all of it to take away, and forgetting it."""

from typing import Annotated
from urllib.parse import unquote

from fastapi import APIRouter, Path
from pydantic import BaseModel
from starlette.convertors import PathConvertor, register_url_convertor

from rerank.service.http.common import Id, UseEngine, UseNamespace


class _IdConvertor(PathConvertor):
    """An id in the path as it was sent, where the gate leaves it: `a%2Fexport` is an id, `a/export` a's export."""

    def convert(self, value: str) -> str:
        return unquote(value)


register_url_convertor("id", _IdConvertor())
router = APIRouter(tags=["users"])

PathId = Annotated[Id, Path(description="id of the user, percent-encoded: a slash is `%2F`")]


class Forgotten(BaseModel):
    """`records`: how many were removed; 0 if there was nothing, as when the user is forgotten a second time."""

    user: str
    records: int


@router.get("/v1/users/{user:id}/export")
def export(user: PathId, engine: UseEngine, namespace: UseNamespace) -> dict[str, object]:
    """All that the store has of a user."""
    return engine.export(namespace, user)


@router.delete("/v1/users/{user:id}")
def forget(user: PathId, engine: UseEngine, namespace: UseNamespace) -> Forgotten:
    """Forget a user, who scores as everybody from now on."""
    return Forgotten(user=user, records=engine.forget(namespace, user))
