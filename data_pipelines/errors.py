# SPDX-License-Identifier: Apache-2.0
"""The one error of the data side: says where the bad record is and what to do about it."""

import errno

# What the system says when it failed to read, whatever the file is worth: another host, or the next try, may
# read it well.
_PASSING = frozenset(
    getattr(errno, name)
    for name in (
        *("EAGAIN", "EBUSY", "EINTR", "EIO", "EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "ESTALE", "EREMOTEIO"),
        *("ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETRESET"),
        *("ENETUNREACH", "ENOTCONN", "EPIPE", "ETIMEDOUT"),
    )
)


def machine_failed(error: BaseException) -> bool:
    """Whether reading failed for a reason that lies in the machine or its network, not in the file.

    Such an error must not become a `DataError`: only one host would leave the record out then, and hosts that
    read the same rows would go on with different ones.
    """
    return isinstance(error, OSError) and error.errno in _PASSING


class DataError(ValueError):
    """A record that cannot be used: a missing file, a missing field, counts that disagree.

    Code that does not know the file or the record yet (tokenisation, image decoding) leaves them out;
    the caller adds them with `at`. Keyword arguments are kept as attributes and survive pickling, since
    data workers run in other processes.

    Args:
      message: what is wrong.
      file: the file that holds the record, or the file itself.
      record: the record's id or its index in the file.
      field: the field of the record.
      remedy: what the user can do.
    """

    def __init__(self, message, *, file=None, record=None, field=None, remedy=None):
        super().__init__(message)
        self.message = message
        self.file = None if file is None else str(file)
        self.record = None if record is None else str(record)
        self.field = field
        self.remedy = remedy

    def __str__(self) -> str:
        place = [self.file] if self.file else []
        place += [f"record {self.record}"] if self.record else []
        place += [f"field {self.field!r}"] if self.field else []
        where = ", ".join(place)
        text = f"{where}: {self.message}" if where else self.message
        return f"{text}. Remedy: {self.remedy}" if self.remedy else text

    def __reduce__(self):
        place = (self.file, self.record, self.field, self.remedy)
        return _rebuild, (type(self), self.message, *place)

    def at(self, *, file=None, record=None, field=None) -> "DataError":
        """The same error with the parts of its place filled in that were unknown."""
        return type(self)(
            self.message,
            file=self.file or file,
            record=self.record or record,
            field=self.field or field,
            remedy=self.remedy,
        )


class CapacityError(DataError):
    """A record that is sound but larger than the static shapes allow."""


class StalledError(RuntimeError):
    """Reading goes on for so long that it will not end."""


def _rebuild(cls, message, file, record, field, remedy):
    return cls(message, file=file, record=record, field=field, remedy=remedy)
