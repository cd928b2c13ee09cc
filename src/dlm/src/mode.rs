//! Lock modes and which of them go together.

/// What a lock allows. o2dlm knows three of the six modes of VMS; the others keep their numbers and are refused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(i8)]
pub enum Mode {
    /// Null: interest in the resource, no right.
    Nl = 0,
    /// Protected read: shared.
    Pr = 3,
    /// Exclusive.
    Ex = 5,
}

/// Every pair of modes, and whether two locks may hold them at once. Exhaustive, each pair once.
pub const COMPATIBILITY: [(Mode, Mode, bool); 9] = [
    (Mode::Nl, Mode::Nl, true),
    (Mode::Nl, Mode::Pr, true),
    (Mode::Nl, Mode::Ex, true),
    (Mode::Pr, Mode::Nl, true),
    (Mode::Pr, Mode::Pr, true),
    (Mode::Pr, Mode::Ex, false),
    (Mode::Ex, Mode::Nl, true),
    (Mode::Ex, Mode::Pr, false),
    (Mode::Ex, Mode::Ex, false),
];

impl Mode {
    /// On the wire: no mode.
    pub const NONE: i8 = -1;
    /// All of them, weakest first.
    pub const ALL: [Self; 3] = [Self::Nl, Self::Pr, Self::Ex];

    /// The mode of a number on the wire.
    pub const fn from_wire(value: i8) -> Option<Self> {
        match value {
            0 => Some(Self::Nl),
            3 => Some(Self::Pr),
            5 => Some(Self::Ex),
            _ => None,
        }
    }

    /// The number on the wire.
    pub const fn to_wire(self) -> i8 {
        self as i8
    }

    /// Whether locks of this and the `other` mode may be held at once.
    pub fn compatible(self, other: Self) -> bool {
        let index = |mode| match mode {
            Self::Nl => 0,
            Self::Pr => 1,
            Self::Ex => 2,
        };
        COMPATIBILITY[index(self) * 3 + index(other)].2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pair_of_modes_has_exactly_one_row_and_it_is_the_one_looked_up() {
        for a in Mode::ALL {
            for b in Mode::ALL {
                let rows: Vec<_> = COMPATIBILITY
                    .iter()
                    .filter(|row| (row.0, row.1) == (a, b))
                    .collect();
                assert_eq!(rows.len(), 1, "{a:?} {b:?}");
                assert_eq!(a.compatible(b), rows[0].2, "{a:?} {b:?}");
                assert_eq!(a.compatible(b), b.compatible(a), "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn modes_that_o2dlm_does_not_serve_are_no_modes() {
        for value in i8::MIN..=i8::MAX {
            assert_eq!(
                Mode::from_wire(value).map(Mode::to_wire),
                [0, 3, 5].contains(&value).then_some(value)
            );
        }
    }
}
