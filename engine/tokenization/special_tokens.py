"""The special tokens of a tokenizer: `cls_token`, `mask_token_id` and their like, and those without a name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, overload

from tokenizers import AddedToken

from ..errors import OptionError
from ..tokenizer_files import NAMED_TOKENS
from .backend import Backend

__all__ = ["SpecialTokens", "text_of"]


def text_of(token: str | AddedToken) -> str:
    """A token as it is spelled."""
    return token.content if isinstance(token, AddedToken) else token


class NamedToken:
    """An attribute such as `cls_token`: a str, or None where the tokenizer has no such token."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> NamedToken: ...
    @overload
    def __get__(self, instance: SpecialTokens, owner: type) -> str | None: ...
    def __get__(self, instance: SpecialTokens | None, owner: type) -> NamedToken | str | None:
        if instance is None:
            return self
        token = instance._named.get(self._name)
        return None if token is None else text_of(token)

    def __set__(self, instance: SpecialTokens, value: str | AddedToken | None) -> None:
        if not isinstance(value, str | AddedToken | None):
            raise OptionError(f"{self._name}: expected a token, got {value!r:.60}")
        if value is None:
            instance._named.pop(self._name, None)
        else:
            instance._named[self._name] = value


class NamedTokenId:
    """An attribute such as `cls_token_id`: the id of a named token, or None."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name.removesuffix("_id")

    @overload
    def __get__(self, instance: None, owner: type) -> NamedTokenId: ...
    @overload
    def __get__(self, instance: SpecialTokens, owner: type) -> int | None: ...
    def __get__(self, instance: SpecialTokens | None, owner: type) -> NamedTokenId | int | None:
        if instance is None:
            return self
        token = instance._named.get(self._name)
        return None if token is None else instance._id_of(text_of(token))

    def __set__(self, instance: SpecialTokens, value: int | None) -> None:
        token = None if value is None else instance._backend.rust.id_to_token(value)
        if value is not None and token is None:
            raise OptionError(f"{self._name}_id: expected an id of the vocabulary, got {value}")
        setattr(instance, self._name, token)


class SpecialTokens:
    """Named and other special tokens. The base of every tokenizer here; holds no text and no file."""

    _backend: Backend
    _named: dict[str, str | AddedToken]
    _extra: list[str | AddedToken]

    bos_token, bos_token_id = NamedToken(), NamedTokenId()
    eos_token, eos_token_id = NamedToken(), NamedTokenId()
    unk_token, unk_token_id = NamedToken(), NamedTokenId()
    sep_token, sep_token_id = NamedToken(), NamedTokenId()
    pad_token, pad_token_id = NamedToken(), NamedTokenId()
    cls_token, cls_token_id = NamedToken(), NamedTokenId()
    mask_token, mask_token_id = NamedToken(), NamedTokenId()

    pad_token_type_id = 0

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Name -> spelling of the named special tokens."""
        return {name: text_of(self._named[name]) for name in NAMED_TOKENS if name in self._named}

    @property
    def extra_special_tokens(self) -> list[str]:
        """Special tokens without a name, such as T5's `<extra_id_0>`."""
        return [text_of(token) for token in self._extra]

    @extra_special_tokens.setter
    def extra_special_tokens(self, tokens: Sequence[str | AddedToken] | None) -> None:
        self._extra = list(tokens or ())

    additional_special_tokens = extra_special_tokens

    @property
    def extra_special_tokens_ids(self) -> list[int | None]:
        """Ids of `extra_special_tokens`."""
        return [self._id_of(token) for token in self.extra_special_tokens]

    additional_special_tokens_ids = extra_special_tokens_ids

    @property
    def all_special_tokens(self) -> list[str]:
        """Every special token once: the named ones, then the others."""
        return list(dict.fromkeys([*self.special_tokens_map.values(), *self.extra_special_tokens]))

    @property
    def all_special_ids(self) -> list[int | None]:
        """Ids of `all_special_tokens`."""
        return [self._id_of(token) for token in self.all_special_tokens]

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Id -> token of all tokens that are looked for before the vocabulary is."""
        return self._backend.rust.get_added_tokens_decoder()

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """Spelling -> id of `added_tokens_decoder`, by id."""
        return {token.content: index for index, token in sorted(self.added_tokens_decoder.items())}

    def get_added_vocab(self) -> dict[str, int]:
        """Spelling -> id of all added tokens, by id."""
        return self.added_tokens_encoder

    def add_tokens(
        self, new_tokens: str | AddedToken | Sequence[str | AddedToken], special_tokens: bool = False
    ) -> int:
        """Add tokens at the end of the vocabulary; those it has already are kept whole in texts from now on.

        Returns:
            How many of them were not looked for before. `len(tokenizer)` says how many rows a model's embedding table
            needs.
        """
        tokens = [new_tokens] if isinstance(new_tokens, str | AddedToken) else list(new_tokens)
        for token in tokens:
            if not isinstance(token, str | AddedToken):
                raise OptionError(f"add_tokens: expected tokens, got {token!r:.60}")
        if not tokens:
            return 0
        self._backend, added = self._backend.with_tokens(tokens, special=special_tokens)
        return added

    def add_special_tokens(
        self, special_tokens_dict: Mapping[str, Any], replace_extra_special_tokens: bool = True
    ) -> int:
        """Name special tokens, and add those that the vocabulary lacks.

        Args:
            special_tokens_dict: name such as "cls_token" -> token, or "extra_special_tokens" -> list of tokens.
            replace_extra_special_tokens: a list replaces the one there is, instead of being added to it.

        Returns:
            How many of them were not looked for before.

        Raises:
            OptionError: a name is unknown, or a value is no token.
        """
        given = dict(special_tokens_dict)
        if "additional_special_tokens" in given:
            given.setdefault("extra_special_tokens", given.pop("additional_special_tokens"))
        adding: list[str | AddedToken] = []
        for name, value in given.items():
            if name == "extra_special_tokens":
                if not isinstance(value, list | tuple) or not all(isinstance(item, str | AddedToken) for item in value):
                    raise OptionError(f"{name}: expected a list of tokens, got {value!r:.60}")
                new = [_special(item) for item in value]
                if replace_extra_special_tokens and new:
                    self._extra = [*new]
                else:
                    new = [item for item in new if item.content not in self.extra_special_tokens]
                    self._extra = [*self._extra, *new]
                adding += new
            elif name in NAMED_TOKENS:
                if not isinstance(value, str | AddedToken):
                    raise OptionError(f"{name}: expected a token, got {value!r:.60}")
                setattr(self, name, _special(value))
                adding.append(_special(value))
            else:
                names = ", ".join((*NAMED_TOKENS, "extra_special_tokens"))
                raise OptionError(f"special token {name!r:.60}: expected one of {names}")
        return self.add_tokens(adding, special_tokens=True)

    def _id_of(self, token: str) -> int | None:
        """The id of a token; that of the unknown token where there is none."""
        found = self._backend.rust.token_to_id(token)
        if found is None and "unk_token" in self._named:
            found = self._backend.rust.token_to_id(text_of(self._named["unk_token"]))
        return found


def _special(token: str | AddedToken) -> AddedToken:
    return AddedToken(token, normalized=False, special=True) if isinstance(token, str) else token
