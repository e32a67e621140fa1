//! What a client does against RFC 9114 that ends its connection, and that h3 does not see or does not mind.

use ::h3::error::Code;

use crate::exchange::Refused;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    /// Section 7.1.
    #[error("a request stream ends inside a frame")]
    Truncated,
    /// Section 6.2.2.
    #[error("a push stream of a client")]
    PushStream,
    /// Section 7.2.3; nothing is ever pushed here.
    #[error("CANCEL_PUSH of what was never promised")]
    CancelPush,
}

impl Violation {
    pub(super) fn code(self) -> Code {
        match self {
            Self::Truncated => Code::H3_FRAME_ERROR,
            Self::PushStream => Code::H3_STREAM_CREATION_ERROR,
            Self::CancelPush => Code::H3_ID_ERROR,
        }
    }

    pub(super) fn refused(self) -> Refused {
        match self {
            Self::Truncated => Refused::H3_TRUNCATED,
            Self::PushStream | Self::CancelPush => Refused::H3_PROTOCOL,
        }
    }
}
