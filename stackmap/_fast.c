// SPDX-License-Identifier: GPL-2.0
/*
 * The work of an exchange on rings for every small message, for Python.
 *
 * A batch in which all is as usual (small payloads of open connections, nothing refused, no watched
 * file ready) becomes a list of segments here, and is taken back here.  Everything else is left to
 * Ring, which is told how many slots there are.  With one connection this saves a sixth of all
 * instructions of an echo, both ends and the kernel's included; with sixteen, a twentieth.
 */
#include "_fast.h"

#include <errno.h>
#include <structmember.h>

#include "_ring.h"
#include "_ring_hot.h"

/* Bytes that one write takes.  A program's makes two at most before its first sync. */
#define WRITE_MAX (64 * 4096)
/* The offset in a page: the lower half of struct smr_segment's start. */
#define OFFSET 0xffff

PyObject *smf_no_event;
static PyObject *view_release;		/* memoryview.release */
static PyObject *released_view;
static PyObject *name_interrupted, *name_complete;
static PyObject *port_closed, *broken;	/* of stackmap.errors */

/* A connection on a ring: the class, and where its instances have what is looked at here. */
static struct {
	PyTypeObject *type;
	Py_ssize_t waiting, shutdown, outlet, failure, deaf, copy_max;
} ring_connection;

/* A segment of payload, whose view is made when somebody asks for it. */
static struct segment *make_segment(PyObject *connection, PyObject *event, PyObject *batch,
				    Py_ssize_t start, Py_ssize_t len)
{
	struct segment *self = PyObject_GC_New(struct segment, &smf_segment_type);

	if (!self)
		return NULL;
	self->connection = Py_NewRef(connection);
	self->view = NULL;
	self->event = Py_NewRef(event);
	self->err = 0;
	self->batch = Py_NewRef(batch);
	self->start = start;
	self->len = len;
	PyObject_GC_Track(self);
	return self;
}

static PyObject *segment_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	struct segment *self = (struct segment *)type->tp_alloc(type, 0);

	(void)args;
	(void)kwargs;
	if (!self)
		return NULL;
	self->connection = Py_NewRef(Py_None);
	self->view = Py_NewRef(Py_None);
	self->event = Py_NewRef(Py_None);
	return (PyObject *)self;
}

static int segment_init(PyObject *object, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "connection", "view", "event", "errno", NULL };
	struct segment *self = (struct segment *)object;
	PyObject *connection, *view, *event;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO!Oi:Segment", names, &connection,
					 &PyMemoryView_Type, &view, &event, &self->err))
		return -1;
	Py_SETREF(self->connection, Py_NewRef(connection));
	Py_XSETREF(self->view, Py_NewRef(view));
	Py_CLEAR(self->batch);
	Py_SETREF(self->event, Py_NewRef(event));
	return 0;
}

static int segment_traverse(PyObject *object, visitproc visit, void *arg)
{
	struct segment *self = (struct segment *)object;

	Py_VISIT(self->connection);
	Py_VISIT(self->view);
	Py_VISIT(self->event);
	return 0;
}

static int segment_clear(PyObject *object)
{
	struct segment *self = (struct segment *)object;

	Py_CLEAR(self->connection);
	Py_CLEAR(self->view);
	Py_CLEAR(self->event);
	Py_CLEAR(self->batch);
	return 0;
}

static void segment_dealloc(PyObject *object)
{
	PyObject_GC_UnTrack(object);
	segment_clear(object);
	Py_TYPE(object)->tp_free(object);
}

/* Release the view.  False, with an exception, if it is in use. */
static bool release_view(struct segment *self)
{
	PyObject *done;

	if (!self->view) {
		self->view = Py_NewRef(released_view);
		Py_CLEAR(self->batch);
		return true;
	}
	done = PyObject_Vectorcall(view_release, &self->view, 1, NULL);
	Py_XDECREF(done);
	return done;
}

static PyObject *segment_view(PyObject *object, void *ignored)
{
	struct segment *self = (struct segment *)object;

	(void)ignored;
	if (!self->view && self->batch) {
		self->view = PySequence_GetSlice(self->batch, self->start,
						 self->start + self->len);
		if (self->view)
			Py_CLEAR(self->batch);
	} else if (!self->view) {
		release_view(self);	/* the garbage collector has cleared it */
	}
	return Py_XNewRef(self->view);
}

static PyObject *segment_repr(PyObject *object)
{
	struct segment *self = (struct segment *)object;
	int is_event = PyObject_IsTrue(self->event);
	PyObject *view;
	Py_ssize_t size;

	if (is_event < 0)
		return NULL;
	if (is_event)
		return PyUnicode_FromFormat("<Segment %R errno=%d of %R>", self->event, self->err,
					    self->connection);
	view = segment_view(object, NULL);
	if (!view)
		return NULL;
	size = PyObject_Size(view);
	Py_DECREF(view);
	if (size < 0) {
		PyErr_Clear();
		return PyUnicode_FromFormat("<Segment of %R, given back>", self->connection);
	}
	return PyUnicode_FromFormat("<Segment %zd bytes of %R>", size, self->connection);
}

PyDoc_STRVAR(segment_release_doc,
"release()\n"
"\n"
"Release the view before the next exchange does.  Idempotent.\n"
"\n"
"Raises:\n"
"    BufferError: a slice of the view is still in use.");

static PyObject *segment_release(PyObject *object, PyObject *ignored)
{
	(void)ignored;
	return release_view((struct segment *)object) ? Py_NewRef(Py_None) : NULL;
}

PyDoc_STRVAR(segment_tobytes_doc,
"tobytes()\n"
"\n"
"Return a copy of the payload: ``bytes(view)``, which costs less if the view was not asked for.\n"
"\n"
"Raises:\n"
"    ValueError: the view was released.");

static PyObject *segment_tobytes(PyObject *object, PyObject *ignored)
{
	struct segment *self = (struct segment *)object;

	(void)ignored;
	if (self->batch) {
		const char *payloads = PyMemoryView_GET_BUFFER(self->batch)->buf;

		return PyBytes_FromStringAndSize(payloads + self->start, self->len);
	}
	return PyBytes_FromObject(self->view ? self->view : released_view);
}

/* The payload of a segment, to be released with PyBuffer_Release(). */
int smf_get_payload(struct segment *self, Py_buffer *payload)
{
	if (self->batch) {
		const char *payloads = PyMemoryView_GET_BUFFER(self->batch)->buf;

		return PyBuffer_FillInfo(payload, (PyObject *)self, (char *)payloads + self->start,
					 self->len, true, PyBUF_SIMPLE);
	}
	return PyObject_GetBuffer(self->view ? self->view : released_view, payload, PyBUF_SIMPLE);
}

static PyMethodDef segment_methods[] = {
	{ "release", segment_release, METH_NOARGS, segment_release_doc },
	{ "tobytes", segment_tobytes, METH_NOARGS, segment_tobytes_doc },
	{ 0 }
};

static PyObject *segment_error(PyObject *object, void *ignored)
{
	int err = ((struct segment *)object)->err;
	PyObject *code, *error;

	(void)ignored;
	if (!err)
		Py_RETURN_NONE;
	code = PyLong_FromLong(err);
	error = code ? PyObject_CallOneArg(broken, code) : NULL;
	Py_XDECREF(code);
	return error;
}

static PyGetSetDef segment_getset[] = {
	{ "error", segment_error, NULL, "The errno as a BrokenError, or None.", NULL },
	{ "view", segment_view, NULL, "A read-only view of the payload.", NULL },
	{ 0 }
};

static PyMemberDef segment_members[] = {
	{ "connection", T_OBJECT_EX, offsetof(struct segment, connection), READONLY, NULL },
	{ "event", T_OBJECT_EX, offsetof(struct segment, event), READONLY, NULL },
	{ "errno", T_INT, offsetof(struct segment, err), READONLY, NULL },
	{ 0 }
};

PyDoc_STRVAR(segment_doc,
"Received payload, or an event, of one connection.\n"
"\n"
"``view`` is a read-only view of the receive buffer.  It is valid until the next\n"
":meth:`Port.exchange`, which takes the buffer back: using it afterwards raises ``ValueError``.\n"
"Copy what you keep (:meth:`tobytes`).");

PyTypeObject smf_segment_type = {
	PyVarObject_HEAD_INIT(NULL, 0)
	.tp_name = "stackmap.Segment",
	.tp_basicsize = sizeof(struct segment),
	.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
	.tp_doc = segment_doc,
	.tp_new = segment_new,
	.tp_init = segment_init,
	.tp_traverse = segment_traverse,
	.tp_clear = segment_clear,
	.tp_dealloc = segment_dealloc,
	.tp_repr = segment_repr,
	.tp_methods = segment_methods,
	.tp_getset = segment_getset,
	.tp_members = segment_members,
};

struct fast_path {
	PyObject_HEAD
	struct smr_pair *pair;
	PyObject *owner;	/* of pair's memory */
	PyObject *no_event;
	PyObject *small;	/* the payloads of shown, a bytes object */
	PyObject *shown;	/* the last batch, until it is taken back */
	int unseen;		/* slots received by an exchange that a signal's handler ended */
};

static PyObject *fast_path_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "address", "owner", "no_event", NULL };
	unsigned long long address;
	PyObject *owner, *no_event;
	struct fast_path *self;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "KOO:FastPath", names, &address, &owner,
					 &no_event))
		return NULL;
	self = (struct fast_path *)type->tp_alloc(type, 0);
	if (!self)
		return NULL;
	self->pair = (struct smr_pair *)(uintptr_t)address;
	self->owner = Py_NewRef(owner);
	self->no_event = Py_NewRef(no_event);
	return (PyObject *)self;
}

static int fast_path_traverse(PyObject *object, visitproc visit, void *arg)
{
	struct fast_path *self = (struct fast_path *)object;

	Py_VISIT(self->owner);
	Py_VISIT(self->no_event);
	Py_VISIT(self->shown);
	return 0;
}

static int fast_path_clear(PyObject *object)
{
	struct fast_path *self = (struct fast_path *)object;

	self->pair = NULL;
	Py_CLEAR(self->shown);
	Py_CLEAR(self->small);
	Py_CLEAR(self->no_event);
	Py_CLEAR(self->owner);
	return 0;
}

static void fast_path_dealloc(PyObject *object)
{
	PyObject_GC_UnTrack(object);
	fast_path_clear(object);
	PyObject_GC_Del(object);
}

static bool is_open(const struct fast_path *self)
{
	PyObject *error;

	if (self->pair && self->pair->fd >= 0)
		return true;
	error = PyObject_CallNoArgs(port_closed);
	if (error)
		PyErr_SetObject((PyObject *)Py_TYPE(error), error);
	Py_XDECREF(error);
	return false;
}

/*
 * Release the views of the last batch.  False, without an exception, when somebody still uses one:
 * exports it, or has a slice of it.
 */
static bool take_back(struct fast_path *self)
{
	if (!self->shown)
		return true;
	for (Py_ssize_t i = 0; i < PyList_GET_SIZE(self->shown); i++) {
		struct segment *segment = (struct segment *)PyList_GET_ITEM(self->shown, i);

		if (!release_view(segment)) {
			PyErr_Clear();
			return false;
		}
	}
	if (Py_REFCNT(self->small) > 1)
		return false;
	Py_CLEAR(self->shown);
	Py_CLEAR(self->small);
	return true;
}

PyDoc_STRVAR(release_doc,
"release()\n"
"\n"
"Release the views of the last batch.  Returns None, or the batch if a view is still in use: its\n"
"memory is then its user's.");

static PyObject *fast_path_release(PyObject *object, PyObject *ignored)
{
	struct fast_path *self = (struct fast_path *)object;
	PyObject *batch;

	(void)ignored;
	if (take_back(self))
		Py_RETURN_NONE;
	batch = self->shown;
	self->shown = NULL;
	Py_CLEAR(self->small);
	return batch;
}

/* The connection that takes a slot's payload, if that is to be copied; borrowed. */
static PyObject *usual_connection(const struct smr_segment *slot, PyObject *connections)
{
	PyObject *id, *connection;

	if (slot->flags)
		return NULL;
	id = PyLong_FromUnsignedLong(slot->id);
	if (!id)
		return NULL;
	connection = PyDict_GetItemWithError(connections, id);
	Py_DECREF(id);
	if (!connection || !Py_IS_TYPE(connection, ring_connection.type) ||
	    smf_slot(connection, ring_connection.deaf) != Py_False)
		return NULL;
	if (slot->len > SMR_SMALL &&
	    slot->len > PyLong_AsLong(smf_slot(connection, ring_connection.copy_max)))
		return NULL;
	return connection;
}

/* The connections of a batch's slots; NULL without an exception if not all of it is as usual. */
static PyObject *usual_connections(const struct smr_pair *pair, int count, PyObject *connections)
{
	PyObject *found = PyList_New(count);

	for (int i = 0; found && i < count; i++) {
		PyObject *connection = usual_connection(&pair->received[i], connections);

		if (connection)
			PyList_SET_ITEM(found, i, Py_NewRef(connection));
		else
			Py_CLEAR(found);
	}
	return found;
}

/* A copy of all payloads of a batch: those that are staged, and then the large ones. */
static PyObject *copy_payloads(const struct smr_pair *pair, int count)
{
	Py_ssize_t large = 0;
	PyObject *copy;
	char *to;

	for (int i = 0; i < count; i++)
		if (pair->received[i].len > SMR_SMALL)
			large += pair->received[i].len;
	copy = PyBytes_FromStringAndSize(NULL, pair->found[0] + large);
	if (!copy)
		return NULL;
	to = PyBytes_AS_STRING(copy);
	memcpy(to, pair->staging, pair->found[0]);
	to += pair->found[0];
	for (int i = 0; large && i < count; i++) {
		const struct smr_segment *slot = &pair->received[i];

		if (slot->len > SMR_SMALL) {
			memcpy(to, smr_buffer(pair, slot->buf) + (slot->start & OFFSET), slot->len);
			to += slot->len;
		}
	}
	return copy;
}

/* The batch as a list of segments; NULL without an exception if not all of it is as usual. */
static PyObject *usual_batch(struct fast_path *self, int count, PyObject *connections)
{
	const struct smr_pair *pair = self->pair;
	Py_ssize_t large = pair->found[0];
	PyObject *batch = usual_connections(pair, count, connections);
	/* A copy of its own, so that a view of it can never show other data. */
	PyObject *small = batch ? copy_payloads(pair, count) : NULL;
	PyObject *whole = small ? PyMemoryView_FromObject(small) : NULL;

	if (!whole)
		Py_CLEAR(batch);
	for (int i = 0; batch && i < count; i++) {
		const struct smr_segment *slot = &pair->received[i];
		PyObject *connection = PyList_GET_ITEM(batch, i);
		Py_ssize_t start = slot->start;
		struct segment *segment;

		if (slot->len > SMR_SMALL) {
			start = large;
			large += slot->len;
		}
		segment = make_segment(connection, self->no_event, whole, start, slot->len);
		if (!segment) {
			Py_CLEAR(batch);
			break;
		}
		PyList_SET_ITEM(batch, i, (PyObject *)segment);
		Py_DECREF(connection);
	}
	Py_XDECREF(whole);
	/* A list of its own, because the caller may take segments out of the other. */
	self->shown = batch ? PyList_GetSlice(batch, 0, count) : NULL;
	if (!self->shown) {
		Py_XDECREF(batch);
		Py_XDECREF(small);
		return NULL;
	}
	self->small = small;
	return batch;
}

PyDoc_STRVAR(exchange_doc,
"exchange(timeout, connections)\n"
"\n"
"Give back, send, wait, receive.  Returns the segments, if all of them are as usual; if not,\n"
"the number of slots received (or -errno), and what else there is is in the pair; None if nothing\n"
"was done because a view of the last batch is still in use.\n"
"\n"
"A wait goes on after a signal (PEP 475).  If a signal's handler raises, so does this, and the next\n"
"call returns what this one received.");

/* Exchange until something arrives, the deadline, or a signal whose handler raises (then -1). */
static int exchange_and_heed_signals(struct fast_path *self, double timeout)
{
	int64_t deadline = smr_deadline(timeout);
	int count;

	do {
		Py_BEGIN_ALLOW_THREADS
		count = smr_exchange(self->pair, deadline);
		Py_END_ALLOW_THREADS
		if (PyErr_CheckSignals()) {
			self->unseen = count > 0 ? count : 0;
			return -1;
		}
	} while (count == -EINTR);
	return count;
}

static PyObject *exchange(struct fast_path *self, PyObject *wait, PyObject *connections)
{
	double timeout = -1;
	PyObject *batch;
	int count;

	if (wait != Py_None) {
		timeout = PyFloat_AsDouble(wait);
		if (PyErr_Occurred())
			return NULL;
	}
	if (!is_open(self))
		return NULL;
	if (!take_back(self))
		Py_RETURN_NONE;
	if (self->unseen) {
		count = self->unseen;
		self->unseen = 0;
	} else {
		count = exchange_and_heed_signals(self, timeout);
		if (PyErr_Occurred())
			return NULL;
	}
	if (count > 0 && !self->pair->found[1] && !self->pair->found[2]) {
		batch = usual_batch(self, count, connections);
		if (batch || PyErr_Occurred())
			return batch;
	}
	return PyLong_FromLong(count);
}

static PyObject *fast_path_exchange(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
	if (nargs != 2 || !PyDict_Check(args[1])) {
		PyErr_SetString(PyExc_TypeError, "exchange() takes a timeout and a dictionary");
		return NULL;
	}
	return exchange((struct fast_path *)object, args[0], args[1]);
}

PyDoc_STRVAR(send_doc,
"send()\n"
"\n"
"Send what was written, unless the pair's thread is in a call that sends.  Any thread may call this:\n"
"the interpreter's lock is held throughout, so nothing is written meanwhile, and nothing more is\n"
"taken before the pair's thread has queued what the kernel refused.");

static PyObject *fast_path_send(PyObject *object, PyObject *ignored)
{
	struct fast_path *self = (struct fast_path *)object;

	(void)ignored;
	if (self->pair)
		smr_help_send(self->pair);
	Py_RETURN_NONE;
}

static PyMethodDef fast_path_methods[] = {
	{ "exchange", (PyCFunction)(void (*)(void))fast_path_exchange, METH_FASTCALL, exchange_doc },
	{ "release", fast_path_release, METH_NOARGS, release_doc },
	{ "send", fast_path_send, METH_NOARGS, send_doc },
	{ 0 }
};

static PyTypeObject fast_path_type = {
	PyVarObject_HEAD_INIT(NULL, 0)
	.tp_name = "stackmap._fast.FastPath",
	.tp_basicsize = sizeof(struct fast_path),
	.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
	.tp_doc = PyDoc_STR("The hot loops of a pair of rings.  owner keeps what is at address alive."),
	.tp_new = fast_path_new,
	.tp_traverse = fast_path_traverse,
	.tp_clear = fast_path_clear,
	.tp_dealloc = fast_path_dealloc,
	.tp_methods = fast_path_methods,
};

/* Where one connection writes. */
struct outlet {
	PyObject_HEAD
	struct fast_path *path;
	uint32_t id;
	unsigned long long written;
};

static PyObject *outlet_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "path", "id", NULL };
	struct outlet *self;
	PyObject *path;
	unsigned int id;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!I:Outlet", names, &fast_path_type, &path,
					 &id))
		return NULL;
	self = (struct outlet *)type->tp_alloc(type, 0);
	if (!self)
		return NULL;
	self->path = (struct fast_path *)Py_NewRef(path);
	self->id = id;
	return (PyObject *)self;
}

static int outlet_traverse(PyObject *object, visitproc visit, void *arg)
{
	Py_VISIT(((struct outlet *)object)->path);
	return 0;
}

static int outlet_clear(PyObject *object)
{
	Py_CLEAR(((struct outlet *)object)->path);
	return 0;
}

static void outlet_dealloc(PyObject *object)
{
	PyObject_GC_UnTrack(object);
	outlet_clear(object);
	PyObject_GC_Del(object);
}

PyDoc_STRVAR(outlet_write_doc,
"write(data)\n"
"\n"
"Copy data into the transmit ring, and count it.  Returns None if it took all, or the number of\n"
"bytes taken.");

static size_t put(struct outlet *self, const Py_buffer *data)
{
	size_t taken = smr_write(self->path->pair, self->id, data->buf,
				 data->len < WRITE_MAX ? data->len : WRITE_MAX);

	self->written += taken;
	return taken;
}

static PyObject *outlet_write(PyObject *object, PyObject *argument)
{
	struct outlet *self = (struct outlet *)object;
	Py_buffer data;
	size_t taken;
	bool all;

	if (!self->path || !is_open(self->path) ||
	    PyObject_GetBuffer(argument, &data, PyBUF_SIMPLE))
		return NULL;
	taken = put(self, &data);
	all = taken == (size_t)data.len;
	PyBuffer_Release(&data);
	return all ? Py_NewRef(Py_None) : PyLong_FromSize_t(taken);
}

PyDoc_STRVAR(outlet_report_doc,
"report()\n"
"\n"
"Ask for a report of the last slot written.  False if all slots were handed to TCP already.");

static PyObject *outlet_report(PyObject *object, PyObject *ignored)
{
	struct outlet *self = (struct outlet *)object;

	(void)ignored;
	if (!self->path || !is_open(self->path))
		return NULL;
	return PyBool_FromLong(smr_report(self->path->pair, self->id));
}

static PyMethodDef outlet_methods[] = {
	{ "write", outlet_write, METH_O, outlet_write_doc },
	{ "report", outlet_report, METH_NOARGS, outlet_report_doc },
	{ 0 }
};

static PyMemberDef outlet_members[] = {
	{ "written", T_ULONGLONG, offsetof(struct outlet, written), 0,
	  "Bytes written.  Bytes that are written again can be subtracted." },
	{ 0 }
};

static PyTypeObject outlet_type = {
	PyVarObject_HEAD_INIT(NULL, 0)
	.tp_name = "stackmap._fast.Outlet",
	.tp_basicsize = sizeof(struct outlet),
	.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
	.tp_doc = PyDoc_STR("Where one connection writes to a pair of rings, under its id."),
	.tp_new = outlet_new,
	.tp_traverse = outlet_traverse,
	.tp_clear = outlet_clear,
	.tp_dealloc = outlet_dealloc,
	.tp_methods = outlet_methods,
	.tp_members = outlet_members,
};

static PyObject *rest_of(PyObject *data, Py_ssize_t taken, Py_ssize_t len)
{
	PyObject *view = PyMemoryView_FromObject(data);
	PyObject *octets = view ? PyObject_CallMethod(view, "cast", "s", "B") : NULL;
	PyObject *rest = octets ? PySequence_GetSlice(octets, taken, len) : NULL;

	Py_XDECREF(octets);
	Py_XDECREF(view);
	return rest;
}

/*
 * Write to a connection, if it is on a ring, is well, and nothing of it waits.  Returns None if that took all
 * of data, or else what is left: part of it, or data itself.
 */
PyObject *smf_write_as_usual(PyObject *connection, PyObject *data)
{
	struct outlet *outlet;
	Py_buffer buffer;
	Py_ssize_t taken, len;

	if (!Py_IS_TYPE(connection, ring_connection.type) ||
	    smf_slot(connection, ring_connection.shutdown) != Py_False ||
	    !smf_is_zero(smf_slot(connection, ring_connection.failure)) ||
	    PyObject_Size(smf_slot(connection, ring_connection.waiting)))
		return Py_NewRef(data);
	outlet = (struct outlet *)smf_slot(connection, ring_connection.outlet);
	if (!outlet->path || !outlet->path->pair || outlet->path->pair->fd < 0)
		return Py_NewRef(data);
	if (PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE)) {
		PyErr_Clear();	/* whoever is left with data finds out */
		return Py_NewRef(data);
	}
	len = buffer.len;
	taken = put(outlet, &buffer);
	PyBuffer_Release(&buffer);
	return taken == len ? Py_NewRef(Py_None) : rest_of(data, taken, len);
}

static PyObject *connection_write(PyObject *method, PyObject *const *args, size_t nargsf,
				  PyObject *names)
{
	PyObject *general = ((struct smf_method *)method)->general;
	PyObject *left, *result;

	if (PyVectorcall_NARGS(nargsf) != 2 || names)
		return PyObject_Vectorcall(general, args, nargsf, names);
	left = smf_write_as_usual(args[0], args[1]);
	if (!left || left == Py_None)
		return left;
	result = PyObject_CallFunctionObjArgs(general, args[0], left, NULL);
	Py_DECREF(left);
	return result;
}

static int learn_connection(PyTypeObject *type)
{
	const struct smf_slot slots[] = {
		{ "_waiting", &ring_connection.waiting },
		{ "_shutdown", &ring_connection.shutdown },
		{ "_outlet", &ring_connection.outlet },
		{ "_failure", &ring_connection.failure },
		{ "_deaf", &ring_connection.deaf },
		{ "_copy_max", &ring_connection.copy_max },
		{ 0 }
	};

	if (smf_find_slots(type, slots))
		return -1;
	Py_XSETREF(ring_connection.type, (PyTypeObject *)Py_NewRef(type));
	return 0;
}

PyDoc_STRVAR(usual_connection_write_doc,
"usual_connection_write(write)\n"
"\n"
"Decorate RingConnection.write(): C writes to a connection of which nothing waits.");

static PyObject *usual_connection_write(PyObject *module, PyObject *general)
{
	(void)module;
	return smf_make_method(general, connection_write, learn_connection);
}

/* A ring: the class, and where its instances have what is looked at here. */
static struct {
	PyTypeObject *type;
	Py_ssize_t after_send, attention, connections, fast, shown, starved;
} ring;

static bool has_only_to_exchange(PyObject *self)
{
	return smf_slot(self, ring.attention) == Py_False &&
	       !PyList_GET_SIZE(smf_slot(self, ring.after_send)) &&
	       !PyDict_GET_SIZE(smf_slot(self, ring.starved));
}

static PyObject *ring_exchange(PyObject *method, PyObject *const *args, size_t nargsf,
			       PyObject *names)
{
	PyObject *self, *found, *completed, *type, *exc, *traceback;

	if (PyVectorcall_NARGS(nargsf) != 2 || names || !Py_IS_TYPE(args[0], ring.type) ||
	    !has_only_to_exchange(args[0]) || PyList_GET_SIZE(smf_slot(args[0], ring.shown)))
		return PyObject_Vectorcall(((struct smf_method *)method)->general, args, nargsf,
					   names);
	self = args[0];
	found = exchange((struct fast_path *)smf_slot(self, ring.fast), args[1],
			 smf_slot(self, ring.connections));
	if (!found) {
		PyErr_Fetch(&type, &exc, &traceback);
		found = PyObject_CallMethodNoArgs(self, name_interrupted);
		if (!found)
			PyErr_Clear();
		Py_XDECREF(found);
		PyErr_Restore(type, exc, traceback);
		return NULL;
	}
	if (PyList_CheckExact(found) && has_only_to_exchange(self))
		return found;
	completed = PyObject_CallMethodObjArgs(self, name_complete, found, args[1], NULL);
	Py_DECREF(found);
	return completed;
}

static int learn_ring(PyTypeObject *type)
{
	const struct smf_slot slots[] = {
		{ "_after_send", &ring.after_send },
		{ "_attention", &ring.attention },
		{ "_connections", &ring.connections },
		{ "_fast", &ring.fast },
		{ "_shown", &ring.shown },
		{ "_starved", &ring.starved },
		{ 0 }
	};

	if (smf_find_slots(type, slots))
		return -1;
	Py_XSETREF(ring.type, (PyTypeObject *)Py_NewRef(type));
	return 0;
}

PyDoc_STRVAR(usual_exchange_doc,
"usual_exchange(exchange)\n"
"\n"
"Decorate Ring.exchange(): C exchanges if nothing else is to be done before it.");

static PyObject *usual_exchange(PyObject *module, PyObject *general)
{
	(void)module;
	return smf_make_method(general, ring_exchange, learn_ring);
}

static PyMethodDef functions[] = {
	{ "usual_exchange", usual_exchange, METH_O, usual_exchange_doc },
	{ "usual_connection_write", usual_connection_write, METH_O, usual_connection_write_doc },
	{ 0 }
};

static struct PyModuleDef module = {
	PyModuleDef_HEAD_INIT,
	.m_name = "stackmap._fast",
	.m_doc = PyDoc_STR("Segments, and what an exchange on rings does for each."),
	.m_size = -1,
	.m_methods = functions,
};

static PyObject *make_released_view(void)
{
	PyObject *view = PyMemoryView_FromMemory("", 0, PyBUF_READ);
	PyObject *done = view && view_release ?
		PyObject_Vectorcall(view_release, &view, 1, NULL) : NULL;

	if (!done)
		Py_CLEAR(view);
	Py_XDECREF(done);
	return view;
}

/* Import a name from another module of the package. */
static PyObject *import(const char *module, const char *name)
{
	PyObject *imported = PyImport_ImportModule(module);
	PyObject *found = imported ? PyObject_GetAttrString(imported, name) : NULL;

	Py_XDECREF(imported);
	return found;
}

static bool find_objects(void)
{
	PyObject *event = import("stackmap._event", "Event");

	smf_no_event = event ? PyObject_GetAttrString(event, "NONE") : NULL;
	Py_XDECREF(event);
	port_closed = import("stackmap.errors", "port_closed");
	broken = import("stackmap.errors", "broken");
	name_interrupted = PyUnicode_InternFromString("_interrupted");
	name_complete = PyUnicode_InternFromString("_complete");
	view_release = PyObject_GetAttrString((PyObject *)&PyMemoryView_Type, "release");
	released_view = make_released_view();
	return smf_no_event && name_interrupted && name_complete && port_closed && broken && view_release && released_view;
}

PyMODINIT_FUNC PyInit__fast(void)
{
	PyObject *self = PyModule_Create(&module);

	if (!self)
		return NULL;
	if (!find_objects() || PyModule_AddType(self, &smf_segment_type) ||
	    PyModule_AddType(self, &fast_path_type) || PyModule_AddType(self, &outlet_type) ||
	    PyType_Ready(&smf_method_type) || smf_init_transport(self) ||
	    smf_init_turn(self) || smf_init_callback(self)) {
		Py_DECREF(self);
		return NULL;
	}
	return self;
}
