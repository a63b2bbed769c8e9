//! The wire codec of the generated services: prost's protobuf, but a malformed message is the fault
//! of its sender.
//!
//! tonic reports a message that cannot be decoded as INTERNAL, which would blame the agent for a
//! bad request. This module uses nothing else of the crate.

use prost::{
    Message,
    bytes::Buf,
    encoding::{DecodeContext, decode_key, skip_field},
};
use tonic::{
    Code, Status,
    codec::{Codec, DecodeBuf, Decoder},
};
use tonic_prost::ProstCodec;

/// Works as [`ProstCodec`], but a message that cannot be decoded is an INVALID_ARGUMENT.
#[derive(Debug)]
pub(crate) struct StrictCodec<T, U>(ProstCodec<T, U>);

impl<T, U> Default for StrictCodec<T, U> {
    fn default() -> Self {
        Self(ProstCodec::new())
    }
}

impl<T, U> Codec for StrictCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = <ProstCodec<T, U> as Codec>::Encoder;
    type Decoder = StrictDecoder<<ProstCodec<T, U> as Codec>::Decoder>;

    fn encoder(&mut self) -> Self::Encoder {
        self.0.encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        StrictDecoder(self.0.decoder())
    }
}

/// Number of fields up to which a message may have any content.
const FIELDS: usize = 4096;
/// Least average size in bytes of the fields of a message that has more than [`FIELDS`] of them.
const DENSITY: usize = 8;

/// Whether decoding a message would multiply its size: an empty entry of a list takes two bytes on
/// the wire and about fifty in memory. The agent decodes requests before it knows who sends them.
fn is_inflated(mut message: &[u8]) -> bool {
    let length = message.len();
    let mut fields: usize = 0;
    while let Ok((tag, wire_type)) = decode_key(&mut message)
        // A malformed field ends the count; the decoder reports it.
        && skip_field(wire_type, tag, &mut message, DecodeContext::default()).is_ok()
    {
        fields += 1;
    }
    fields > FIELDS && length / fields < DENSITY
}

/// The decoder of [`StrictCodec`], which wraps prost's.
#[derive(Debug)]
pub(crate) struct StrictDecoder<D>(D);

impl<D: Decoder<Error = Status>> Decoder for StrictDecoder<D> {
    type Item = D::Item;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        if is_inflated(buffer.chunk()) {
            return Err(Status::invalid_argument(
                "malformed message: too many fields that hold next to nothing",
            ));
        }
        self.0.decode(buffer).map_err(|status| match status.code() {
            Code::Internal => {
                Status::invalid_argument(format!("malformed message: {}", status.message()))
            }
            _ => status,
        })
    }
}

/// The code as gRPC spells it.
pub(crate) const fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_nothing_are_refused() {
        let of = |entry: &[u8], times: usize| is_inflated(&entry.repeat(times));
        // An empty entry of field 8, and an entry that takes eight bytes.
        assert!(of(&[0x42, 0], 4097) && !of(&[0x42, 0], 4096));
        assert!(!of(&[0x42, 6, 0, 0, 0, 0, 0, 0], 100_000));
        assert!(!is_inflated(&[]) && !of(&[0xff], 100_000));
    }
}
