//! The wire codec of the generated services: protobuf by prost, with a malformed message being the sender's fault.
//!
//! tonic reports what cannot be decoded as INTERNAL, which on a server would blame the server. May depend on nothing else of the crate.

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

/// Encodes as [`ProstCodec`]; decodes as it does but for the status of a failure, INVALID_ARGUMENT.
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

/// Fields that a message may have whatever they hold.
const FIELDS: usize = 4096;
/// What more fields must have on average, in bytes.
const DENSITY: usize = 8;

/// Whether a message becomes many times as large when it is decoded, as an empty entry of a list takes two bytes to send and fifty to hold.
/// Requests are decoded before anybody knows who sends them.
fn is_inflated(mut message: &[u8]) -> bool {
    let length = message.len();
    let mut fields: usize = 0;
    while let Ok((tag, wire_type)) = decode_key(&mut message)
        // What is malformed the decoder says.
        && skip_field(wire_type, tag, &mut message, DecodeContext::default()).is_ok()
    {
        fields += 1;
    }
    fields > FIELDS && length / fields < DENSITY
}

/// The decoder of [`StrictCodec`].
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_nothing_are_refused() {
        let of = |entry: &[u8], times: usize| is_inflated(&entry.repeat(times));
        // An empty entry of field 8, and one of eight bytes.
        assert!(of(&[0x42, 0], 4097) && !of(&[0x42, 0], 4096));
        assert!(!of(&[0x42, 6, 0, 0, 0, 0, 0, 0], 100_000));
        assert!(!is_inflated(&[]) && !of(&[0xff], 100_000));
    }
}
