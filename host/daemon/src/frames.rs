//! Frames over a pipe between this program and a child that is this program too: a length in four bytes, and the bytes.

use std::io::{self, Read, Write};

/// The largest frame: a message or an answer at the largest limits, as JSON, which escapes.
const FRAME_BYTES_MAX: usize = 512 << 20;
/// What is reserved before the bytes of a frame have come: a length by itself costs no more memory than this.
const RESERVED_BYTES: usize = 1 << 20;

/// Writes one frame and flushes.
///
/// # Errors
/// The pipe's, or a frame of 4 GiB and more.
pub(crate) fn write_frame(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    to.write_all(&length.to_le_bytes())?;
    to.write_all(bytes)?;
    to.flush()
}

/// The next frame; `None` at the end of the input.
///
/// # Errors
/// The pipe's; an end within a frame; a frame above 512 MiB.
pub(crate) fn read_frame(from: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0u8; 4];
    match from.read_exact(&mut length) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut bytes = Vec::with_capacity(length.min(RESERVED_BYTES));
    if from.take(length as u64).read_to_end(&mut bytes)? < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_as_they_were_written_and_a_torn_one_is_an_error() {
        let mut pipe = Vec::new();
        write_frame(&mut pipe, b"one").unwrap();
        write_frame(&mut pipe, b"").unwrap();
        let mut from = pipe.as_slice();
        assert_eq!(read_frame(&mut from).unwrap().unwrap(), b"one");
        assert_eq!(read_frame(&mut from).unwrap().unwrap(), b"");
        assert_eq!(read_frame(&mut from).unwrap(), None);
        assert!(read_frame(&mut &pipe[..5]).is_err());
        assert!(read_frame(&mut &[0xff; 8][..]).is_err(), "a length alone reserves nothing");
    }
}
