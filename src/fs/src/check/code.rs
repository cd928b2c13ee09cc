//! What can be wrong with a volume: one code a kind of finding, with fsck.ocfs2's names where it has one.

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Worth knowing; nothing is lost or in danger. The Linux driver leaves most of them itself.
    Note,
    /// The volume contradicts itself.
    Error,
}

macro_rules! codes {
    ($($(#[doc = $doc:literal])* $name:ident $text:literal $severity:ident $fsck:literal;)*) => {
        /// A kind of finding. The names are stable.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $($(#[doc = $doc])* $name,)*
        }

        impl Code {
            /// All there are.
            pub const ALL: &'static [Code] = &[$(Code::$name),*];

            /// The name: fsck.ocfs2's, where it has one for this.
            pub const fn name(self) -> &'static str {
                match self { $(Code::$name => $text),* }
            }

            /// What such a finding is, unless the one who finds it knows better.
            pub const fn severity(self) -> Severity {
                match self { $(Code::$name => Severity::$severity),* }
            }

            /// Whether fsck.ocfs2 has this code.
            pub const fn is_of_fsck(self) -> bool {
                match self { $(Code::$name => $fsck),* }
            }
        }
    };
}

codes! {
    // Superblock and system files.
    #[doc = "The superblock is not one, or breaks a rule of its own."]
    SuperblockInvalid "SUPERBLOCK_INVALID" Error false;
    #[doc = "A backup superblock is unreadable, or of another volume."]
    BackupSuperblockInvalid "BACKUP_SUPERBLOCK_INVALID" Error false;
    #[doc = "The superblock and the global bitmap count different clusters."]
    SuperblockClusters "SUPERBLOCK_CLUSTERS" Error true;
    #[doc = "A system file has no name in the system directory."]
    SystemFileMissing "SYSTEM_FILE_MISSING" Error false;
    #[doc = "A system file's inode is not what its name says."]
    SystemFileInvalid "SYSTEM_FILE_INVALID" Error false;
    #[doc = "A slot has no orphan directory."]
    OrphanDirMissing "ORPHAN_DIR_MISSING" Error true;
    #[doc = "The slot map is too short, or names a node twice."]
    SlotMapInvalid "SLOT_MAP_INVALID" Error false;
    #[doc = "A journal's superblock is not one."]
    JournalFileInvalid "JOURNAL_FILE_INVALID" Error true;
    #[doc = "A journal has features that nobody knows."]
    JournalUnknownFeature "JOURNAL_UNKNOWN_FEATURE" Error true;
    #[doc = "Journals differ in their features."]
    JournalMissingFeature "JOURNAL_MISSING_FEATURE" Error true;
    #[doc = "Journals differ in length, or one is below 4 MiB."]
    JournalTooSmall "JOURNAL_TOO_SMALL" Error true;
    // Blocks.
    #[doc = "The device failed to read a block."]
    ReadError "READ_ERROR" Error false;
    #[doc = "A block does not match its checksum, and no single bit explains it."]
    BadCrc32 "BAD_CRC32" Error true;
    #[doc = "One bit of a stored block is wrong; the checksum corrects it."]
    SingleBitError "SINGLE_BIT_ERROR" Note false;
    // Allocators.
    #[doc = "The global bitmap's groups are not as large as their bitmaps."]
    ChainCpg "CHAIN_CPG" Error true;
    #[doc = "An allocator claims more chains than fit."]
    ChainCount "CHAIN_COUNT" Error true;
    #[doc = "An allocator uses more chains than it has."]
    ChainNextFree "CHAIN_NEXT_FREE" Error true;
    #[doc = "A chain among the used ones has no group."]
    ChainEmpty "CHAIN_EMPTY" Error true;
    #[doc = "A chain starts outside the volume."]
    ChainHeadLinkRange "CHAIN_HEAD_LINK_RANGE" Error true;
    #[doc = "A chain leads outside the volume."]
    ChainLinkRange "CHAIN_LINK_RANGE" Error true;
    #[doc = "A chain leads to a block that is no group descriptor."]
    ChainLinkMagic "CHAIN_LINK_MAGIC" Error true;
    #[doc = "A chain leads to a group of another volume."]
    ChainLinkGen "CHAIN_LINK_GEN" Error true;
    #[doc = "A chain's counts are not the sums of its groups'."]
    ChainBits "CHAIN_BITS" Error true;
    #[doc = "An allocator's counts are not the sums of its chains'."]
    ChainGroupBits "CHAIN_GROUP_BITS" Error true;
    #[doc = "An allocator's clusters are not those of its groups."]
    ChainIClusters "CHAIN_I_CLUSTERS" Error true;
    #[doc = "An allocator's size is not that of its clusters."]
    ChainISize "CHAIN_I_SIZE" Error true;
    #[doc = "A group descriptor is of another volume."]
    GroupGen "GROUP_GEN" Error true;
    #[doc = "A group descriptor names another allocator."]
    GroupParent "GROUP_PARENT" Error true;
    #[doc = "A group descriptor calls itself another block."]
    GroupBlkno "GROUP_BLKNO" Error true;
    #[doc = "A group descriptor names another chain."]
    GroupChain "GROUP_CHAIN" Error true;
    #[doc = "A group's count of free bits is not that of its bitmap."]
    GroupFreeBits "GROUP_FREE_BITS" Error true;
    #[doc = "A group has more bits than its bitmap, or than a group has."]
    GroupBits "GROUP_BITS" Error false;
    #[doc = "A group is in two places."]
    GroupDuplicate "GROUP_DUPLICATE" Error true;
    #[doc = "A chain leads back into itself."]
    GroupChainLoop "GROUP_CHAIN_LOOP" Error true;
    #[doc = "A group of the global bitmap lies where none is."]
    GroupUnexpectedDesc "GROUP_UNEXPECTED_DESC" Error true;
    #[doc = "A group of the global bitmap is in no chain."]
    GroupExpectedDesc "GROUP_EXPECTED_DESC" Error true;
    #[doc = "A discontiguous group's list is not flat."]
    DiscontigBgDepth "DISCONTIG_BG_DEPTH" Error true;
    #[doc = "A discontiguous group's list claims more records than fit."]
    DiscontigBgCount "DISCONTIG_BG_COUNT" Error true;
    #[doc = "A discontiguous group's list uses more records than it has."]
    DiscontigBgNextFreeRec "DISCONTIG_BG_NEXT_FREE_REC" Error true;
    #[doc = "A part of a discontiguous group lies outside the volume."]
    DiscontigBgRecRange "DISCONTIG_BG_REC_RANGE" Error true;
    #[doc = "The parts of a discontiguous group are more than a group."]
    DiscontigBgClusters "DISCONTIG_BG_CLUSTERS" Error true;
    #[doc = "The parts of a discontiguous group are less than a group."]
    DiscontigBgLessClusters "DISCONTIG_BG_LESS_CLUSTERS" Error true;
    #[doc = "A part of a discontiguous group does not start where the last one ends."]
    DiscontigBgRecCorrupt "DISCONTIG_BG_REC_CORRUPT" Error true;
    #[doc = "Clusters are used and not set in the global bitmap, or set and not used."]
    ClusterAllocBit "CLUSTER_ALLOC_BIT" Error true;
    #[doc = "A metadata block is used and not set in its allocator, or set and not used."]
    SuballocBit "SUBALLOC_BIT" Error false;
    #[doc = "A metadata block is used twice."]
    MetadataDuplicate "METADATA_DUPLICATE" Error false;
    #[doc = "A local alloc's bitmap is larger than its inode."]
    LallocSize "LALLOC_SIZE" Error true;
    #[doc = "A local alloc without a window counts used bits."]
    LallocNzUsed "LALLOC_NZ_USED" Error true;
    #[doc = "A local alloc without a window has a start."]
    LallocNzBm "LALLOC_NZ_BM" Error true;
    #[doc = "A local alloc's window starts outside the volume."]
    LallocBmOverrun "LALLOC_BM_OVERRUN" Error true;
    #[doc = "A local alloc's window is larger than its bitmap."]
    LallocBmSize "LALLOC_BM_SIZE" Error true;
    #[doc = "A local alloc's window ends outside the volume."]
    LallocBmStraddle "LALLOC_BM_STRADDLE" Error true;
    #[doc = "A local alloc counts more used bits than its window has."]
    LallocUsedOverrun "LALLOC_USED_OVERRUN" Error true;
    #[doc = "A local alloc's count of used bits is not that of its bitmap."]
    LallocUsed "LALLOC_USED" Error true;
    #[doc = "A truncate log claims more records than fit."]
    DeallocCount "DEALLOC_COUNT" Error true;
    #[doc = "A truncate log uses more records than it has."]
    DeallocUsed "DEALLOC_USED" Error true;
    #[doc = "A truncate record starts outside the volume."]
    TruncateRecStartRange "TRUNCATE_REC_START_RANGE" Error true;
    #[doc = "A truncate record is longer than cluster numbers reach."]
    TruncateRecWrap "TRUNCATE_REC_WRAP" Error true;
    #[doc = "A truncate record ends outside the volume."]
    TruncateRecRange "TRUNCATE_REC_RANGE" Error true;
    // Inodes.
    #[doc = "An inode is valid and its bit is clear, or the other way round."]
    InodeAllocRepair "INODE_ALLOC_REPAIR" Error true;
    #[doc = "An inode names another place of allocation than it is in."]
    InodeSuballoc "INODE_SUBALLOC" Error true;
    #[doc = "An inode is of another volume."]
    InodeGen "INODE_GEN" Error true;
    #[doc = "An inode calls itself another block."]
    InodeBlkno "INODE_BLKNO" Error true;
    #[doc = "An inode's type is none of the seven."]
    InodeMode "INODE_MODE" Error false;
    #[doc = "A field of an inode breaks a rule."]
    InodeField "INODE_FIELD" Error false;
    #[doc = "The root directory's inode is no directory."]
    RootNotdir "ROOT_NOTDIR" Error true;
    #[doc = "An inode in use has a time of deletion."]
    InodeNzDtime "INODE_NZ_DTIME" Error true;
    #[doc = "An inode has inline data on a volume without that feature."]
    InlineDataFlagInvalid "INLINE_DATA_FLAG_INVALID" Error true;
    #[doc = "An inode's room for inline data is not what it has."]
    InlineDataCountInvalid "INLINE_DATA_COUNT_INVALID" Error true;
    #[doc = "An inode has a refcount tree on a volume without that feature."]
    RefcountFlagInvalid "REFCOUNT_FLAG_INVALID" Error true;
    #[doc = "An inode without the flag names a refcount tree."]
    RefcountLocInvalid "REFCOUNT_LOC_INVALID" Error true;
    #[doc = "An inode's size exceeds its clusters."]
    InodeSize "INODE_SIZE" Error true;
    #[doc = "An inode's clusters are not those of its extents."]
    InodeClusters "INODE_CLUSTERS" Error true;
    #[doc = "Clusters lie beyond an inode's size."]
    InodeSparseSize "INODE_SPARSE_SIZE" Note true;
    #[doc = "An inode's clusters are not those of its extents."]
    InodeSparseClusters "INODE_SPARSE_CLUSTERS" Error true;
    #[doc = "An inode's size exceeds its room for inline data."]
    InodeInlineSize "INODE_INLINE_SIZE" Error true;
    #[doc = "An inode with inline data has clusters."]
    InodeInlineClusters "INODE_INLINE_CLUSTERS" Error true;
    #[doc = "A symlink in its inode has clusters."]
    LinkFastData "LINK_FAST_DATA" Error true;
    #[doc = "A symlink's text does not end."]
    LinkNullterm "LINK_NULLTERM" Error true;
    #[doc = "A symlink's text is not as long as its size."]
    LinkSize "LINK_SIZE" Error true;
    #[doc = "A symlink's text is longer than its blocks."]
    LinkBlocks "LINK_BLOCKS" Error true;
    // Extent trees.
    #[doc = "An extent block calls itself another block."]
    EbBlkno "EB_BLKNO" Error true;
    #[doc = "An extent block is of another volume."]
    EbGen "EB_GEN" Error true;
    #[doc = "A record leads to a block that is no extent block."]
    ExtentEbInvalid "EXTENT_EB_INVALID" Error true;
    #[doc = "An extent list has another depth than its place."]
    ExtentListDepth "EXTENT_LIST_DEPTH" Error true;
    #[doc = "An extent list claims more records than fit."]
    ExtentListCount "EXTENT_LIST_COUNT" Error true;
    #[doc = "An extent list uses more records than it has."]
    ExtentListFree "EXTENT_LIST_FREE" Error true;
    #[doc = "A record leads outside the volume."]
    ExtentBlknoRange "EXTENT_BLKNO_RANGE" Error true;
    #[doc = "An extent does not start with a cluster."]
    ExtentBlknoUnaligned "EXTENT_BLKNO_UNALIGNED" Error true;
    #[doc = "An extent ends outside the volume."]
    ExtentClustersOverrun "EXTENT_CLUSTERS_OVERRUN" Error true;
    #[doc = "A record starts before the last one ends."]
    ExtentOverlap "EXTENT_OVERLAP" Error true;
    #[doc = "A record does not start where the last one ends."]
    NoHoles "NO_HOLES" Error true;
    #[doc = "An extent is unwritten on a volume without that feature."]
    ExtentMarkedUnwritten "EXTENT_MARKED_UNWRITTEN" Error true;
    #[doc = "An extent is shared and its inode has no refcount tree."]
    ExtentMarkedRefcounted "EXTENT_MARKED_REFCOUNTED" Error true;
    #[doc = "A record that is not the first one covers nothing."]
    ExtentRecEmpty "EXTENT_REC_EMPTY" Error false;
    #[doc = "A child's records lie outside their parent's range."]
    ExtentChildRange "EXTENT_CHILD_RANGE" Error false;
    #[doc = "The leaves of a tree are not linked in order, or the last one is not known."]
    ExtentLeafLink "EXTENT_LEAF_LINK" Error false;
    #[doc = "A tree's count of clusters is not that of its extents."]
    TreeClusters "TREE_CLUSTERS" Error false;
    #[doc = "Clusters are used twice."]
    DupClustersClone "DUP_CLUSTERS_CLONE" Error true;
    // Refcount trees.
    #[doc = "A refcount block calls itself another block."]
    RbBlkno "RB_BLKNO" Error true;
    #[doc = "A refcount block is of another volume."]
    RbGen "RB_GEN" Error true;
    #[doc = "A refcount block names another root."]
    RbParent "RB_PARENT" Error true;
    #[doc = "A refcount tree leads to a block that is no refcount block."]
    RefcountBlockInvalid "REFCOUNT_BLOCK_INVALID" Error true;
    #[doc = "An inode's refcount tree is none."]
    RefcountRootBlockInvalid "REFCOUNT_ROOT_BLOCK_INVALID" Error true;
    #[doc = "A refcount block claims more records than fit."]
    RefcountListCount "REFCOUNT_LIST_COUNT" Error true;
    #[doc = "A refcount block uses more records than it has."]
    RefcountListUsed "REFCOUNT_LIST_USED" Error true;
    #[doc = "A leaf of a refcount tree is empty."]
    RefcountListEmpty "REFCOUNT_LIST_EMPTY" Error true;
    #[doc = "A refcount record lies outside the volume."]
    RefcountClusterRange "REFCOUNT_CLUSTER_RANGE" Error true;
    #[doc = "A refcount record starts before the last one ends."]
    RefcountClusterCollision "REFCOUNT_CLUSTER_COLLISION" Error true;
    #[doc = "A refcount tree's count of leaves is wrong."]
    RefcountClusters "REFCOUNT_CLUSTERS" Error true;
    #[doc = "A refcount record is of clusters that nobody shares."]
    RefcountRecRedundant "REFCOUNT_REC_REDUNDANT" Error true;
    #[doc = "Clusters are shared by another number of extents than recorded."]
    RefcountCountInvalid "REFCOUNT_COUNT_INVALID" Error true;
    #[doc = "A refcount tree is used by another number of inodes than recorded."]
    RefcountCount "REFCOUNT_COUNT" Error true;
    // Extended attributes.
    #[doc = "An inode's block of attributes is none."]
    XattrBlockInvalid "XATTR_BLOCK_INVALID" Error true;
    #[doc = "Attributes are fewer than counted."]
    XattrCountInvalid "XATTR_COUNT_INVALID" Error true;
    #[doc = "An attribute's entry lies over something else."]
    XattrEntryInvalid "XATTR_ENTRY_INVALID" Error true;
    #[doc = "An attribute's name lies outside its area."]
    XattrNameOffsetInvalid "XATTR_NAME_OFFSET_INVALID" Error true;
    #[doc = "An attribute's value is not where one of its size is."]
    XattrLocationInvalid "XATTR_LOCATION_INVALID" Error true;
    #[doc = "An attribute's value lies over something else."]
    XattrValueInvalid "XATTR_VALUE_INVALID" Error true;
    #[doc = "An attribute's name does not hash to what its entry says."]
    XattrHashInvalid "XATTR_HASH_INVALID" Error true;
    #[doc = "A bucket's free space starts elsewhere."]
    XattrFreeStartInvalid "XATTR_FREE_START_INVALID" Error true;
    #[doc = "A bucket's count of bytes is wrong."]
    XattrValueLenInvalid "XATTR_VALUE_LEN_INVALID" Error true;
    #[doc = "An extent's count of buckets is wrong."]
    XattrBucketCountInvalid "XATTR_BUCKET_COUNT_INVALID" Error true;
    #[doc = "Attributes of a tree are not in the order of their hashes."]
    XattrOrder "XATTR_ORDER" Error false;
    // Directories.
    #[doc = "A directory has no block."]
    DirZero "DIR_ZERO" Error true;
    #[doc = "An entry's length is impossible."]
    DirentLength "DIRENT_LENGTH" Error true;
    #[doc = "A directory has a dot entry too many."]
    DirentDottyDup "DIRENT_DOTTY_DUP" Error true;
    #[doc = "A directory does not begin with its dot entries."]
    DirentNotDotty "DIRENT_NOT_DOTTY" Error true;
    #[doc = "A directory's first entry is not itself."]
    DirentDotInode "DIRENT_DOT_INODE" Error true;
    #[doc = "A directory's first entry is too long."]
    DirentDotExcess "DIRENT_DOT_EXCESS" Error true;
    #[doc = "An entry has no name."]
    DirentZero "DIRENT_ZERO" Error true;
    #[doc = "An entry's name has a slash or a NUL."]
    DirentNameChars "DIRENT_NAME_CHARS" Error true;
    #[doc = "An entry's inode lies outside the volume."]
    DirentInodeRange "DIRENT_INODE_RANGE" Error true;
    #[doc = "An entry's inode is free."]
    DirentInodeFree "DIRENT_INODE_FREE" Error true;
    #[doc = "An entry's type is not its inode's."]
    DirentType "DIRENT_TYPE" Error true;
    #[doc = "A name is in a directory twice."]
    DirentDuplicate "DIRENT_DUPLICATE" Error true;
    #[doc = "A directory has two names."]
    DirParentDup "DIR_PARENT_DUP" Error true;
    #[doc = "A directory block's trailer is none."]
    DirTrailerInvalid "DIR_TRAILER_INVALID" Error false;
    #[doc = "A directory block's trailer looks like an entry in use."]
    DirTrailerInode "DIR_TRAILER_INODE" Error true;
    #[doc = "A directory block's trailer looks like an entry with a name."]
    DirTrailerNameLen "DIR_TRAILER_NAME_LEN" Error true;
    #[doc = "A directory block's trailer has another length."]
    DirTrailerRecLen "DIR_TRAILER_REC_LEN" Error true;
    #[doc = "A directory block calls itself another block."]
    DirTrailerBlkno "DIR_TRAILER_BLKNO" Error true;
    #[doc = "A directory block names another directory."]
    DirTrailerParentInode "DIR_TRAILER_PARENT_INODE" Error true;
    #[doc = "The list of a directory's blocks with holes leads astray."]
    DirFreeList "DIR_FREE_LIST" Error false;
    #[doc = "A directory block's hole is not as its trailer says."]
    DirFreeHint "DIR_FREE_HINT" Note false;
    #[doc = "A directory has an index on a volume without that feature."]
    IvDxTree "IV_DX_TREE" Error true;
    #[doc = "A directory has no index."]
    DxTreeMissing "DX_TREE_MISSING" Note true;
    #[doc = "A directory's index is damaged."]
    DxTreeCorrupt "DX_TREE_CORRUPT" Error true;
    #[doc = "A directory's index does not lead to an entry."]
    DxLookupFailed "DX_LOOKUP_FAILED" Error true;
    #[doc = "A directory's index counts another number of entries."]
    DxEntryCount "DX_ENTRY_COUNT" Error false;
    #[doc = "There is no root directory."]
    RootDirMissing "ROOT_DIR_MISSING" Error true;
    #[doc = "There is no /lost+found."]
    LostfoundMissing "LOSTFOUND_MISSING" Note true;
    #[doc = "A directory has no way to the root."]
    DirNotConnected "DIR_NOT_CONNECTED" Error true;
    #[doc = "A directory's second entry is not its parent."]
    DirDotdot "DIR_DOTDOT" Error true;
    #[doc = "An inode has no name."]
    InodeNotConnected "INODE_NOT_CONNECTED" Error true;
    #[doc = "An inode's links are not as many as its names."]
    InodeCount "INODE_COUNT" Error true;
    #[doc = "An inode and an orphan directory disagree."]
    InodeOrphaned "INODE_ORPHANED" Error true;
    // Quota.
    #[doc = "A quota file does not begin as one."]
    QmagicInvalid "QMAGIC_INVALID" Error true;
    #[doc = "A block of a quota tree is damaged."]
    QtreeBlkInvalid "QTREE_BLK_INVALID" Error true;
    #[doc = "An entry of a quota tree is where it is not looked for."]
    DqblkInvalid "DQBLK_INVALID" Error true;
    #[doc = "An identity is in a quota tree twice."]
    DupDqblkValid "DUP_DQBLK_VALID" Error true;
    #[doc = "A slot's quota file is damaged."]
    QuotaLocalInvalid "QUOTA_LOCAL_INVALID" Error false;
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
