// SPDX-License-Identifier: GPL-2.0
/*
 * Lent payload: it stays in the page where it was received, which is the application's for a while.
 *
 * A slice of a view outlives the view.  So views are made of an object for the page, which knows
 * whether any of them is left: only without one can the page be sent or given back.
 */
#include "_fast.h"

#include <structmember.h>

#include "_ring.h"
#include "_ring_hot.h"

static PyObject *in_use_error;		/* of stackmap._in_use */

struct page {
	PyObject_HEAD
	struct fast_path *lender;
	uint32_t buffer;
	bool ours;
	char *payload;
	Py_ssize_t len;
	Py_ssize_t exports;	/* views that are not released; one and its slices are one here */
};

static int page_traverse(PyObject *object, visitproc visit, void *arg)
{
	Py_VISIT(((struct page *)object)->lender);
	return 0;
}

static int page_clear(PyObject *object)
{
	Py_CLEAR(((struct page *)object)->lender);
	return 0;
}

static void page_dealloc(PyObject *object)
{
	PyObject_GC_UnTrack(object);
	page_clear(object);
	PyObject_GC_Del(object);
}

static int page_get_buffer(PyObject *object, Py_buffer *buffer, int flags)
{
	struct page *self = (struct page *)object;

	if (!self->ours) {
		buffer->obj = NULL;
		PyErr_SetString(PyExc_ValueError, "the page was given back");
		return -1;
	}
	if (PyBuffer_FillInfo(buffer, object, self->payload, self->len, true, flags))
		return -1;
	self->exports++;
	return 0;
}

static void page_release_buffer(PyObject *object, Py_buffer *ignored)
{
	(void)ignored;
	((struct page *)object)->exports--;
}

PyDoc_STRVAR(page_release_doc,
"release()\n"
"\n"
"Show the page no more.  False if a view of it is in use.");

static PyObject *page_release(PyObject *object, PyObject *ignored)
{
	struct page *self = (struct page *)object;

	(void)ignored;
	if (self->exports)
		Py_RETURN_FALSE;
	self->ours = false;
	Py_RETURN_TRUE;
}

/* Whether the page is ours, and an outlet leads to the port that it belongs to. */
static bool can_be_sent(const struct page *self, const struct outlet *to)
{
	return self->ours && self->lender && self->lender->pair && to->path && to->path->pair &&
	       to->path->pair->port == self->lender->pair->port;
}

/* Put a page without views into a transmit slot.  Returns the buffer that is ours instead, or 0. */
static uint32_t send_page(struct page *self, struct outlet *to)
{
	const char *buffer = smr_buffer(self->lender->pair, self->buffer);
	uint32_t spare = smr_send_buffer(to->path->pair, to->id, self->buffer,
					 self->payload - buffer, self->len);

	if (spare) {
		self->ours = false;
		to->written += self->len;
	}
	return spare;
}

static struct outlet *outlet_of(PyObject *argument)
{
	if (Py_IS_TYPE(argument, &smf_outlet_type))
		return (struct outlet *)argument;
	PyErr_Format(PyExc_TypeError, "%R is not an Outlet", argument);
	return NULL;
}

PyDoc_STRVAR(page_send_doc,
"send(outlet)\n"
"\n"
"Send the page, which no view may show.  Returns the number of the buffer that the slot had; 0 if no\n"
"slot is free, or the outlet is another port's.");

static PyObject *page_send(PyObject *object, PyObject *argument)
{
	struct page *self = (struct page *)object;
	struct outlet *to = outlet_of(argument);

	if (!to)
		return NULL;
	return PyLong_FromUnsignedLong(can_be_sent(self, to) ? send_page(self, to) : 0);
}

static PyObject *page_in_use(PyObject *object, void *ignored)
{
	(void)ignored;
	return PyBool_FromLong(((struct page *)object)->exports);
}

static PyBufferProcs page_buffer = {
	.bf_getbuffer = page_get_buffer,
	.bf_releasebuffer = page_release_buffer,
};

static PyMethodDef page_methods[] = {
	{ "release", page_release, METH_NOARGS, page_release_doc },
	{ "send", page_send, METH_O, page_send_doc },
	{ 0 }
};

static PyGetSetDef page_getset[] = {
	{ "in_use", page_in_use, NULL, "A view of it, or a slice of one, is not released.", NULL },
	{ 0 }
};

static PyMemberDef page_members[] = {
	{ "buffer", T_UINT, offsetof(struct page, buffer), READONLY, "Its number." },
	{ 0 }
};

static PyTypeObject page_type = {
	PyVarObject_HEAD_INIT(NULL, 0)
	.tp_name = "stackmap._fast.Page",
	.tp_basicsize = sizeof(struct page),
	.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
	.tp_doc = PyDoc_STR("A received payload in its page, to make views of."),
	.tp_traverse = page_traverse,
	.tp_clear = page_clear,
	.tp_dealloc = page_dealloc,
	.tp_as_buffer = &page_buffer,
	.tp_methods = page_methods,
	.tp_getset = page_getset,
	.tp_members = page_members,
};

static struct page *make_page(struct fast_path *lender, const struct smr_segment *slot)
{
	struct page *self = PyObject_GC_New(struct page, &page_type);

	if (!self)
		return NULL;
	self->lender = (struct fast_path *)Py_NewRef(lender);
	self->buffer = slot->buf;
	self->ours = true;
	self->payload = smr_buffer(lender->pair, slot->buf) + (slot->start & SMR_OFFSET);
	self->len = slot->len;
	self->exports = 0;
	PyObject_GC_Track(self);
	return self;
}

/* A segment whose payload is lent. */
struct lent {
	struct segment segment;
	struct page *page;	/* NULL: it is not in the receive ring any more */
	uint32_t slot;		/* of the receive ring */
};

struct segment *smf_lend(struct fast_path *lender, PyObject *connection,
			 const struct smr_segment *slot)
{
	struct page *page = make_page(lender, slot);
	struct lent *self = page ? PyObject_GC_New(struct lent, &smf_lent_type) : NULL;

	if (!self) {
		Py_XDECREF(page);
		return NULL;
	}
	smf_fill_segment(&self->segment, connection, (PyObject *)page, page->payload, page->len);
	self->page = page;
	self->slot = slot->start >> 16;
	PyObject_GC_Track(self);
	return &self->segment;
}

static int lent_traverse(PyObject *object, visitproc visit, void *arg)
{
	Py_VISIT(((struct lent *)object)->page);
	return smf_segment_type.tp_traverse(object, visit, arg);
}

static int lent_clear(PyObject *object)
{
	Py_CLEAR(((struct lent *)object)->page);
	return smf_segment_type.tp_clear(object);
}

static void lent_dealloc(PyObject *object)
{
	PyObject_GC_UnTrack(object);
	Py_CLEAR(((struct lent *)object)->page);
	smf_segment_type.tp_dealloc(object);
}

/* Release the view.  False, without an exception, if it or a slice of it is in use. */
static bool end_view(struct lent *self)
{
	if (self->segment.view && !smf_release_view(&self->segment)) {
		PyErr_Clear();
		return false;
	}
	return !self->page->exports;
}

static void forget_page(struct lent *self)
{
	if (!self->segment.view)
		smf_release_view(&self->segment);
	Py_CLEAR(self->page);
}

bool smf_is_lent(const struct segment *segment)
{
	const struct lent *self = (const struct lent *)segment;

	return Py_IS_TYPE(segment, &smf_lent_type) && self->page && self->page->lender &&
	       self->page->lender->pair;
}

static bool give_back(struct lent *self)
{
	if (!end_view(self))
		return false;
	self->page->ours = false;
	forget_page(self);
	return true;
}

/* Release the view of any segment.  False, without an exception, if it is in use. */
bool smf_release_segment(struct segment *self)
{
	if (smf_is_lent(self))
		return give_back((struct lent *)self);
	if (smf_release_view(self))
		return true;
	PyErr_Clear();
	return false;
}

static PyObject *refuse(struct lent *self)
{
	return smf_raise(PyObject_CallOneArg(in_use_error, self->segment.connection));
}

PyDoc_STRVAR(lent_release_doc,
"release()\n"
"\n"
"Release the view; the page goes back with the next exchange.  Idempotent.\n"
"\n"
"Raises:\n"
"    BufferError: a slice of the view is still in use.");

static PyObject *lent_release(PyObject *object, PyObject *ignored)
{
	struct segment *self = (struct segment *)object;

	(void)ignored;
	if (!smf_is_lent(self))
		return smf_release_view(self) ? Py_NewRef(Py_None) : NULL;
	return give_back((struct lent *)self) ? Py_NewRef(Py_None) : refuse((struct lent *)self);
}

/* Send a lent page.  1: done, 0: it cannot be, -1: an exception, because a slice is in use. */
int smf_forward_lent(struct segment *segment, struct outlet *to)
{
	struct lent *self = (struct lent *)segment;
	uint32_t spare;

	if (!smf_is_lent(segment) || !can_be_sent(self->page, to))
		return 0;
	if (!end_view(self)) {
		refuse(self);
		return -1;
	}
	spare = send_page(self->page, to);
	if (!spare) {
		Py_CLEAR(self->segment.view);	/* so that it is made again */
		Py_XSETREF(self->segment.source, Py_NewRef(self->page));
		return 0;
	}
	smr_keep(self->page->lender->pair, self->slot, spare);
	forget_page(self);
	return 1;
}

PyDoc_STRVAR(lent_forward_doc,
"forward(outlet)\n"
"\n"
"Put the page into a transmit slot.  False if none is free, the outlet is another port's, or the page\n"
"was given back.\n"
"\n"
"Raises:\n"
"    BufferError: a slice of the view is still in use.");

static PyObject *lent_forward(PyObject *object, PyObject *argument)
{
	struct outlet *to = outlet_of(argument);
	int done;

	if (!to)
		return NULL;
	done = smf_forward_lent((struct segment *)object, to);
	return done < 0 ? NULL : PyBool_FromLong(done);
}

/* Leave another buffer to the receive ring instead of the page. */
static PyObject *take_page(struct lent *self, PyObject *spare)
{
	unsigned long buffer = PyLong_AsUnsignedLong(spare);
	PyObject *page;

	if (PyErr_Occurred())
		return NULL;
	smr_keep(self->page->lender->pair, self->slot, buffer);
	page = Py_NewRef(self->page);
	forget_page(self);
	return page;
}

static bool must_be_lent(const struct segment *self)
{
	if (smf_is_lent(self))
		return true;
	PyErr_SetString(PyExc_ValueError, "the page was given back");
	return false;
}

PyDoc_STRVAR(lent_keep_doc,
"keep(spare)\n"
"\n"
"Leave the buffer ``spare`` to the receive ring; returns the page.\n"
"\n"
"Raises:\n"
"    BufferError: a slice of the view is still in use.\n"
"    ValueError: the page was given back.");

static PyObject *lent_keep(PyObject *object, PyObject *spare)
{
	struct lent *self = (struct lent *)object;

	if (!must_be_lent(&self->segment))
		return NULL;
	return end_view(self) ? take_page(self, spare) : refuse(self);
}

PyDoc_STRVAR(lent_set_aside_doc,
"set_aside(spare)\n"
"\n"
"As keep(), of a page that is in use, and goes on to be shown.");

static PyObject *lent_set_aside(PyObject *object, PyObject *spare)
{
	struct lent *self = (struct lent *)object;

	return must_be_lent(&self->segment) ? take_page(self, spare) : NULL;
}

static PyObject *lent_lender(PyObject *object, void *ignored)
{
	struct page *page = ((struct lent *)object)->page;
	PyObject *lender = page ? (PyObject *)page->lender : NULL;

	(void)ignored;
	return Py_NewRef(lender ? lender : Py_None);
}

static PyMethodDef lent_methods[] = {
	{ "release", lent_release, METH_NOARGS, lent_release_doc },
	{ "forward", lent_forward, METH_O, lent_forward_doc },
	{ "keep", lent_keep, METH_O, lent_keep_doc },
	{ "set_aside", lent_set_aside, METH_O, lent_set_aside_doc },
	{ 0 }
};

static PyGetSetDef lent_getset[] = {
	{ "lender", lent_lender, NULL, "The rings that lend the page; None if they have it back.", NULL },
	{ 0 }
};

PyTypeObject smf_lent_type = {
	PyVarObject_HEAD_INIT(NULL, 0)
	.tp_base = &smf_segment_type,
	.tp_name = "stackmap._fast.LentSegment",
	.tp_basicsize = sizeof(struct lent),
	.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
	.tp_doc = PyDoc_STR("A segment with a view of a page of the receive ring."),
	.tp_traverse = lent_traverse,
	.tp_clear = lent_clear,
	.tp_dealloc = lent_dealloc,
	.tp_methods = lent_methods,
	.tp_getset = lent_getset,
};

int smf_init_lent(PyObject *module)
{
	in_use_error = smf_import("stackmap._in_use", "in_use_error");
	if (!in_use_error || PyModule_AddType(module, &page_type) ||
	    PyModule_AddType(module, &smf_lent_type))
		return -1;
	return 0;
}
