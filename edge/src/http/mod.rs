pub mod clock;
pub mod framing;
pub mod guarded_io;
