//! The seven types of file, as a mode and as a directory entry say them.

/// Type of a file. The numbers are those of `file_type` in a directory entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FileType {
    Regular = 1,
    Directory = 2,
    CharDevice = 3,
    BlockDevice = 4,
    Fifo = 5,
    Socket = 6,
    Symlink = 7,
}

impl FileType {
    /// The type in a mode; `None` if its four bits name none.
    pub const fn of_mode(mode: u16) -> Option<Self> {
        Some(match mode >> 12 {
            0x1 => Self::Fifo,
            0x2 => Self::CharDevice,
            0x4 => Self::Directory,
            0x6 => Self::BlockDevice,
            0x8 => Self::Regular,
            0xA => Self::Symlink,
            0xC => Self::Socket,
            _ => return None,
        })
    }

    /// The type in a directory entry; `None` for 0 (unknown) and anything above 7.
    pub const fn of_dirent(value: u8) -> Option<Self> {
        Some(match value {
            1 => Self::Regular,
            2 => Self::Directory,
            3 => Self::CharDevice,
            4 => Self::BlockDevice,
            5 => Self::Fifo,
            6 => Self::Socket,
            7 => Self::Symlink,
            _ => return None,
        })
    }

    /// The type's bits of a mode (`S_IFMT`).
    pub const fn mode_bits(self) -> u16 {
        (match self {
            Self::Fifo => 0x1,
            Self::CharDevice => 0x2,
            Self::Directory => 0x4,
            Self::BlockDevice => 0x6,
            Self::Regular => 0x8,
            Self::Symlink => 0xA,
            Self::Socket => 0xC,
        }) << 12
    }

    /// The value in a directory entry.
    pub const fn dirent(self) -> u8 {
        self as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_and_dirents_agree() {
        let known: Vec<_> = (0..=u8::MAX).filter_map(FileType::of_dirent).collect();
        assert_eq!(known.len(), 7);
        for kind in known {
            assert_eq!(FileType::of_dirent(kind.dirent()), Some(kind));
            assert_eq!(FileType::of_mode(kind.mode_bits() | 0o7777), Some(kind));
        }
        assert_eq!(
            (0..16)
                .filter(|bits| FileType::of_mode(bits << 12).is_some())
                .count(),
            7
        );
    }
}
