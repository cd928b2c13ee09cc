#include "export.h"
#include "spdk/bdev_module.h"
#include "spdk/nvme_spec.h"
#include "spdk/thread.h"
#include "spdk/util.h"

/* The bdev is first: SPDK's context is the whole. */
struct shim_export {
	struct spdk_bdev bdev;
	shim_export_fn call;
	uint64_t number;
	uint32_t home;
	bool read_only;
	bool supports_unmap;
	bool supports_write_zeroes;
	bool foreign_memory;
	bool claimed;
};

/* What a channel of ours holds: nothing, requests find their device by themselves. */
struct export_channel {
	uint8_t unused;
};

/* A request that has memory of another process, in the bdev layer's own room for it. */
struct foreign_request {
	struct spdk_bdev_io *io;
	TAILQ_ENTRY(foreign_request) link;
};

/* A mapping that was given up while requests were in it. */
struct kept_mapping {
	void *start;
	size_t len;
	TAILQ_ENTRY(kept_mapping) link;
};

static pthread_mutex_t g_foreign_lock = PTHREAD_MUTEX_INITIALIZER;
static TAILQ_HEAD(, foreign_request) g_foreign = TAILQ_HEAD_INITIALIZER(g_foreign);
static TAILQ_HEAD(, kept_mapping) g_kept = TAILQ_HEAD_INITIALIZER(g_kept);

static int
export_context_size(void)
{
	return sizeof(struct foreign_request);
}

static bool
foreign_is_used(const void *start, size_t len)
{
	struct foreign_request *request;
	const char *from = start, *to = from + len;
	int i;

	TAILQ_FOREACH(request, &g_foreign, link) {
		for (i = 0; i < request->io->u.bdev.iovcnt; i++) {
			const struct iovec *iov = &request->io->u.bdev.iovs[i];
			const char *base = iov->iov_base;

			if (base < to && base + iov->iov_len > from) {
				return true;
			}
		}
	}
	return false;
}

/* libvfio-user's munmap (build.rs has renamed it there): of a host's memory, when the host is gone or takes it back. It
 * asks SPDK's target first to let requests finish, but the target of 26.01 does not: its pause cuts "all namespaces"
 * (32 bits) to 16 and waits for none. Requests that are still in the memory would fault; so it stays until they are
 * answered. */
int
ocelot_host_munmap(void *start, size_t len)
{
	struct kept_mapping *kept;

	pthread_mutex_lock(&g_foreign_lock);
	if (foreign_is_used(start, len)) {
		kept = calloc(1, sizeof(*kept));
		if (kept != NULL) {
			kept->start = start;
			kept->len = len;
			TAILQ_INSERT_TAIL(&g_kept, kept, link);
		}
		/* Without memory for the note the mapping stays for ever. */
		pthread_mutex_unlock(&g_foreign_lock);
		return 0;
	}
	pthread_mutex_unlock(&g_foreign_lock);
	return munmap(start, len);
}

static bool
export_has_foreign_memory(struct spdk_bdev_io *io)
{
	struct shim_export *export = io->bdev->ctxt;

	return export->foreign_memory &&
	       (io->type == SPDK_BDEV_IO_TYPE_READ || io->type == SPDK_BDEV_IO_TYPE_WRITE);
}

static void
foreign_begin(struct spdk_bdev_io *io)
{
	struct foreign_request *request = (struct foreign_request *)io->driver_ctx;

	request->io = io;
	pthread_mutex_lock(&g_foreign_lock);
	TAILQ_INSERT_TAIL(&g_foreign, request, link);
	pthread_mutex_unlock(&g_foreign_lock);
}

static void
foreign_end(struct spdk_bdev_io *io)
{
	struct foreign_request *request = (struct foreign_request *)io->driver_ctx;
	struct kept_mapping *kept, *next;

	pthread_mutex_lock(&g_foreign_lock);
	TAILQ_REMOVE(&g_foreign, request, link);
	TAILQ_FOREACH_SAFE(kept, &g_kept, link, next) {
		if (!foreign_is_used(kept->start, kept->len)) {
			TAILQ_REMOVE(&g_kept, kept, link);
			munmap(kept->start, kept->len);
			free(kept);
		}
	}
	pthread_mutex_unlock(&g_foreign_lock);
}

static int
export_module_init(void)
{
	return 0;
}

static void export_examine(struct spdk_bdev *bdev);

static struct spdk_bdev_module g_export_module = {
	.name = "ocelot",
	.module_init = export_module_init,
	.get_ctx_size = export_context_size,
	.examine_config = export_examine,
};

SPDK_BDEV_MODULE_REGISTER(ocelot, &g_export_module)

/* What is inside an exported file is its user's: a partition table or a logical volume store that is found there must
 * not become devices of this process. A claim while SPDK's modules examine keeps them away. */
static void
export_examine(struct spdk_bdev *bdev)
{
	if (bdev->module == &g_export_module) {
		struct shim_export *export = bdev->ctxt;

		export->claimed = spdk_bdev_module_claim_bdev(bdev, NULL, &g_export_module) == 0;
	}
	spdk_bdev_module_examine_done(&g_export_module);
}

static void
export_freed(void *device)
{
	struct shim_export *export = device;
	shim_export_fn call = export->call;
	uint64_t number = export->number;
	uint32_t home = export->home;

	free(export->bdev.name);
	free(export);
	call(SHIM_EXPORT_GONE, number, home, NULL);
}

static int
export_destruct(void *context)
{
	struct shim_export *export = context;

	/* The bdev layer is done with it once this returns, and the channels are gone; the answer comes when the
	 * io_device is. */
	spdk_io_device_unregister(export, export_freed);
	return 0;
}

static int
export_channel_create(void *device, void *context)
{
	return 0;
}

static void
export_channel_destroy(void *device, void *context)
{
}

static void
export_hand_over(struct spdk_bdev_io *io)
{
	struct shim_export *export = io->bdev->ctxt;

	if (export_has_foreign_memory(io)) {
		foreign_begin(io);
	}
	export->call(SHIM_EXPORT_REQUEST, export->number, export->home, io);
}

static void
export_have_buffer(struct spdk_io_channel *channel, struct spdk_bdev_io *io, bool success)
{
	if (success) {
		export_hand_over(io);
	} else {
		spdk_bdev_io_complete(io, SPDK_BDEV_IO_STATUS_FAILED);
	}
}

static void
export_submit(struct spdk_io_channel *channel, struct spdk_bdev_io *io)
{
	/* Some readers leave it to the device to find memory. */
	if (io->type == SPDK_BDEV_IO_TYPE_READ &&
	    (io->u.bdev.iovs == NULL || io->u.bdev.iovs[0].iov_base == NULL)) {
		spdk_bdev_io_get_buf(io, export_have_buffer, io->u.bdev.num_blocks * io->bdev->blocklen);
		return;
	}
	export_hand_over(io);
}

static bool
export_supports(void *context, enum spdk_bdev_io_type type)
{
	struct shim_export *export = context;

	switch (type) {
	case SPDK_BDEV_IO_TYPE_READ:
	case SPDK_BDEV_IO_TYPE_FLUSH:
	case SPDK_BDEV_IO_TYPE_RESET:
		return true;
	case SPDK_BDEV_IO_TYPE_WRITE:
		return !export->read_only;
	case SPDK_BDEV_IO_TYPE_UNMAP:
		return !export->read_only && export->supports_unmap;
	case SPDK_BDEV_IO_TYPE_WRITE_ZEROES:
		return !export->read_only && export->supports_write_zeroes;
	default:
		return false;
	}
}

static struct spdk_io_channel *
export_get_channel(void *context)
{
	return spdk_get_io_channel(context);
}

static const struct spdk_bdev_fn_table g_export_calls = {
	.destruct = export_destruct,
	.submit_request = export_submit,
	.io_type_supported = export_supports,
	.get_io_channel = export_get_channel,
};

struct shim_export *
shim_export_register(const struct shim_export_options *options, shim_export_fn call, int *rc)
{
	struct shim_export *export = calloc(1, sizeof(*export));
	struct spdk_bdev *bdev;

	*rc = -ENOMEM;
	if (export == NULL) {
		return NULL;
	}
	export->call = call;
	export->number = options->number;
	export->home = options->home;
	export->read_only = options->read_only;
	export->supports_unmap = options->supports_unmap;
	export->supports_write_zeroes = options->supports_write_zeroes;
	export->foreign_memory = options->foreign_memory;
	bdev = &export->bdev;
	bdev->name = strdup(options->name);
	if (bdev->name == NULL) {
		free(export);
		return NULL;
	}
	bdev->product_name = "Ocelot file";
	bdev->write_cache = options->volatile_cache;
	bdev->blocklen = options->block_size;
	bdev->blockcnt = options->block_count;
	bdev->ctxt = export;
	bdev->fn_table = &g_export_calls;
	bdev->module = &g_export_module;
	spdk_io_device_register(export, export_channel_create, export_channel_destroy, sizeof(struct export_channel),
				bdev->name);
	*rc = spdk_bdev_register(bdev);
	if (*rc == -EEXIST || *rc == -EINVAL) {
		spdk_io_device_unregister(export, NULL);
		free(bdev->name);
		free(export);
		return NULL;
	}
	if (*rc != 0) {
		/* Out of memory, and SPDK does not tell how far it came: it may be taking the device away already. */
		return NULL;
	}
	if (export->claimed) {
		spdk_bdev_module_release_bdev(bdev);
	}
	return export;
}

void
shim_export_unregister(struct shim_export *export)
{
	spdk_bdev_unregister(&export->bdev, NULL, NULL);
}

int
shim_export_resize(struct shim_export *export, uint64_t block_count)
{
	return spdk_bdev_notify_blockcnt_change(&export->bdev, block_count);
}

/* The start of a request's memory if its pieces follow each other, as they do when a guest's pages do. */
static void *
export_one_piece(struct spdk_bdev_io *io)
{
	struct iovec *iovs = io->u.bdev.iovs;
	int i;

	if (iovs == NULL || io->u.bdev.iovcnt < 1) {
		return NULL;
	}
	for (i = 1; i < io->u.bdev.iovcnt; i++) {
		if ((char *)iovs[i - 1].iov_base + iovs[i - 1].iov_len != iovs[i].iov_base) {
			return NULL;
		}
	}
	return iovs[0].iov_base;
}

void
shim_export_look_at(struct spdk_bdev_io *io, struct shim_export_request *request)
{
	uint64_t block_size = io->bdev->blocklen;

	request->memory = NULL;
	request->durable = false;
	request->offset = 0;
	request->len = 0;
	switch (io->type) {
	case SPDK_BDEV_IO_TYPE_READ:
		request->kind = SHIM_EXPORT_READ;
		request->memory = export_one_piece(io);
		break;
	case SPDK_BDEV_IO_TYPE_WRITE:
		request->kind = SHIM_EXPORT_WRITE;
		request->memory = export_one_piece(io);
		/* SPDK's NVMe-oF target leaves it to the device to honour the bit. */
		request->durable = (io->u.bdev.nvme_cdw12.raw & SPDK_NVME_IO_FLAGS_FORCE_UNIT_ACCESS) != 0;
		break;
	case SPDK_BDEV_IO_TYPE_FLUSH:
		request->kind = SHIM_EXPORT_FLUSH;
		break;
	case SPDK_BDEV_IO_TYPE_UNMAP:
		request->kind = SHIM_EXPORT_UNMAP;
		break;
	case SPDK_BDEV_IO_TYPE_WRITE_ZEROES:
		request->kind = SHIM_EXPORT_WRITE_ZEROES;
		break;
	case SPDK_BDEV_IO_TYPE_RESET:
		request->kind = SHIM_EXPORT_RESET;
		return;
	default:
		request->kind = SHIM_EXPORT_OTHER;
		return;
	}
	request->offset = io->u.bdev.offset_blocks * block_size;
	request->len = io->u.bdev.num_blocks * block_size;
}

void
shim_export_gather(struct spdk_bdev_io *io, void *buffer, size_t len)
{
	spdk_copy_iovs_to_buf(buffer, len, io->u.bdev.iovs, io->u.bdev.iovcnt);
}

void
shim_export_scatter(struct spdk_bdev_io *io, void *buffer, size_t len)
{
	spdk_copy_buf_to_iovs(io->u.bdev.iovs, io->u.bdev.iovcnt, buffer, len);
}

void
shim_export_complete(struct spdk_bdev_io *io, int32_t code_type, int32_t code)
{
	struct spdk_thread *before = spdk_get_thread();
	struct spdk_thread *own = spdk_bdev_io_get_thread(io);

	/* The bdev layer and whoever is behind it expect to be on their own thread; it is one that this reactor polls,
	 * and no poll of it is under way or it is the current one. */
	if (export_has_foreign_memory(io)) {
		foreign_end(io);
	}
	if (own != before) {
		spdk_set_thread(own);
	}
	if (code_type == 0 && code == 0) {
		spdk_bdev_io_complete(io, SPDK_BDEV_IO_STATUS_SUCCESS);
	} else {
		spdk_bdev_io_complete_nvme_status(io, 0, code_type, code);
	}
	if (own != before) {
		spdk_set_thread(before);
	}
}
