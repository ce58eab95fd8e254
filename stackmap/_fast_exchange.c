// SPDX-License-Identifier: GPL-2.0
/*
 * The work of an exchange on rings for every message, for Python.
 *
 * A batch in which all is as usual (payloads of open connections, nothing refused, no watched file
 * ready) becomes a list of segments here.  Everything else is left to Ring, which is told how many
 * slots there are.  Segments are taken back here, whoever made them.  With one connection this saves
 * a sixth of all instructions of an echo, both ends and the kernel's included; with sixteen, a
 * twentieth.
 */
#include "_fast.h"

#include <errno.h>

#include "_ring.h"
#include "_ring_hot.h"

static PyObject *name_interrupted, *name_complete;
static PyObject *port_closed;		/* of stackmap.errors */

static PyObject *fast_path_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "address", "owner", "aside", NULL };
	unsigned long long address;
	PyObject *owner, *aside;
	struct fast_path *self;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "KOO!:FastPath", names, &address, &owner,
					 &PyDict_Type, &aside))
		return NULL;
	self = (struct fast_path *)type->tp_alloc(type, 0);
	if (!self)
		return NULL;
	self->pair = (struct smr_pair *)(uintptr_t)address;
	self->owner = Py_NewRef(owner);
	self->aside = Py_NewRef(aside);
	return (PyObject *)self;
}

static int fast_path_traverse(PyObject *object, visitproc visit, void *arg)
{
	struct fast_path *self = (struct fast_path *)object;

	Py_VISIT(self->owner);
	Py_VISIT(self->aside);
	Py_VISIT(self->shown);
	return 0;
}

static int fast_path_clear(PyObject *object)
{
	struct fast_path *self = (struct fast_path *)object;

	self->pair = NULL;
	Py_CLEAR(self->shown);
	Py_CLEAR(self->copied);
	Py_CLEAR(self->aside);
	Py_CLEAR(self->owner);
	return 0;
}

static void fast_path_dealloc(PyObject *object)
{
	PyObject_GC_UnTrack(object);
	fast_path_clear(object);
	PyObject_GC_Del(object);
}

bool smf_is_open(const struct fast_path *self)
{
	if (self->pair && self->pair->fd >= 0)
		return true;
	smf_raise(PyObject_CallNoArgs(port_closed));
	return false;
}

/*
 * Release the views of the last batch.  False, without an exception, when somebody still uses one:
 * exports it, or has a slice of it.
 */
static bool take_back(struct fast_path *self)
{
	bool in_use = false;

	if (!self->shown)
		return true;
	for (Py_ssize_t i = 0; i < PyList_GET_SIZE(self->shown); i++)
		in_use |= !smf_release_segment((struct segment *)PyList_GET_ITEM(self->shown, i));
	if (in_use || (self->copied && Py_REFCNT(self->copied) > 1))
		return false;
	Py_CLEAR(self->shown);
	Py_CLEAR(self->copied);
	return true;
}

PyDoc_STRVAR(release_doc,
"release()\n"
"\n"
"Release the views of the last batch.  Returns the segments whose memory is still in use: all that were\n"
"copied, if one of them is, for they share it, and it is then its user's; and those that are lent, which\n"
"have to be set aside.");

static PyObject *fast_path_release(PyObject *object, PyObject *ignored)
{
	struct fast_path *self = (struct fast_path *)object;
	PyObject *users = PyList_New(0);
	bool copied;

	(void)ignored;
	if (!users || take_back(self))
		return users;
	copied = self->copied && Py_REFCNT(self->copied) > 1;
	for (Py_ssize_t i = 0; i < PyList_GET_SIZE(self->shown); i++) {
		PyObject *item = PyList_GET_ITEM(self->shown, i);
		struct segment *segment = (struct segment *)item;
		bool lent = smf_is_lent(segment);

		if ((!smf_release_segment(segment) || (copied && !lent)) &&
		    PyList_Append(users, item)) {
			Py_DECREF(users);
			return NULL;
		}
	}
	Py_CLEAR(self->shown);
	Py_CLEAR(self->copied);
	return users;
}

PyDoc_STRVAR(show_doc,
"show(batch, copied=...)\n"
"\n"
"Have the next exchange take back the segments of a list instead of those of the last batch.  Views of\n"
"theirs may show the bytes object ``copied``.");

static PyObject *fast_path_show(PyObject *object, PyObject *args)
{
	struct fast_path *self = (struct fast_path *)object;
	PyObject *batch, *copied = NULL;

	if (!PyArg_ParseTuple(args, "O!|S:show", &PyList_Type, &batch, &copied) ||
	    !smf_are_segments(((PyListObject *)batch)->ob_item, PyList_GET_SIZE(batch)))
		return NULL;
	/* A list of its own, because the caller may take segments out of the other. */
	batch = PyList_GetSlice(batch, 0, PyList_GET_SIZE(batch));
	if (!batch)
		return NULL;
	Py_XSETREF(self->shown, batch);
	if (copied)
		Py_XSETREF(self->copied, Py_NewRef(copied));
	Py_RETURN_NONE;
}

PyDoc_STRVAR(lend_doc,
"lend(connection, start, buffer, size)\n"
"\n"
"A segment of the payload of a received slot, in its page.");

static PyObject *fast_path_lend(PyObject *object, PyObject *args)
{
	struct fast_path *self = (struct fast_path *)object;
	struct smr_segment slot = { 0 };
	PyObject *connection;

	if (!PyArg_ParseTuple(args, "OIIH:lend", &connection, &slot.start, &slot.buf, &slot.len) ||
	    !smf_is_open(self))
		return NULL;
	return (PyObject *)smf_lend(self, connection, &slot);
}

/* Whether the payload of a slot is lent to its connection; if not, it is copied. */
static bool is_to_lend(const struct smr_segment *slot, PyObject *connection)
{
	return slot->len > SMR_SMALL &&
	       slot->len > PyLong_AsLong(smf_slot(connection, smf_ring_connection.copy_max));
}

/* The connection that takes a slot's payload; borrowed. */
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
	if (!connection || !Py_IS_TYPE(connection, smf_ring_connection.type) ||
	    smf_slot(connection, smf_ring_connection.deaf) != Py_False)
		return NULL;
	return connection;
}

/*
 * For each slot of a batch its segment, if it is lent, or else the connection; NULL without an
 * exception if not all of it is as usual: also if a page is to be lent while others are still in use.
 */
static PyObject *begin_batch(struct fast_path *self, int count, PyObject *connections)
{
	PyObject *batch = PyList_New(count);

	for (int i = 0; batch && i < count; i++) {
		const struct smr_segment *slot = &self->pair->received[i];
		PyObject *item = usual_connection(slot, connections);

		if (item && !is_to_lend(slot, item))
			Py_INCREF(item);
		else if (item && !PyDict_GET_SIZE(self->aside))
			item = (PyObject *)smf_lend(self, item, slot);
		else
			item = NULL;
		if (item)
			PyList_SET_ITEM(batch, i, item);
		else
			Py_CLEAR(batch);
	}
	return batch;
}

static bool is_lent(PyObject *batch, Py_ssize_t i)
{
	return Py_IS_TYPE(PyList_GET_ITEM(batch, i), &smf_lent_type);
}

/* A copy of all payloads of a batch that are not lent: those that are staged, and then larger ones. */
static PyObject *copy_payloads(const struct smr_pair *pair, PyObject *batch)
{
	Py_ssize_t count = PyList_GET_SIZE(batch), large = 0;
	PyObject *copy;
	char *to;

	for (Py_ssize_t i = 0; i < count; i++)
		if (pair->received[i].len > SMR_SMALL && !is_lent(batch, i))
			large += pair->received[i].len;
	copy = PyBytes_FromStringAndSize(NULL, pair->found[0] + large);
	if (!copy)
		return NULL;
	to = PyBytes_AS_STRING(copy);
	memcpy(to, pair->staging, pair->found[0]);
	to += pair->found[0];
	for (Py_ssize_t i = 0; large && i < count; i++) {
		const struct smr_segment *slot = &pair->received[i];

		if (slot->len > SMR_SMALL && !is_lent(batch, i)) {
			memcpy(to, smr_buffer(pair, slot->buf) + (slot->start & SMR_OFFSET),
			       slot->len);
			to += slot->len;
		}
	}
	return copy;
}

/* Put segments in the place of the connections in a batch.  False with an exception. */
static bool finish_batch(const struct smr_pair *pair, PyObject *batch, PyObject *copied)
{
	PyObject *whole = PyMemoryView_FromObject(copied);
	const char *staged = PyBytes_AS_STRING(copied), *large = staged + pair->found[0];
	Py_ssize_t count = PyList_GET_SIZE(batch), i;

	for (i = 0; whole && i < count; i++) {
		const struct smr_segment *slot = &pair->received[i];
		PyObject *connection = PyList_GET_ITEM(batch, i);
		const char *payload = staged + slot->start;
		struct segment *segment;

		if (is_lent(batch, i))
			continue;
		if (slot->len > SMR_SMALL) {
			payload = large;
			large += slot->len;
		}
		segment = smf_make_segment(connection, whole, payload, slot->len);
		if (!segment)
			break;
		PyList_SET_ITEM(batch, i, (PyObject *)segment);
		Py_DECREF(connection);
	}
	Py_XDECREF(whole);
	return i == count;
}

/* The batch as a list of segments; NULL without an exception if not all of it is as usual. */
static PyObject *usual_batch(struct fast_path *self, int count, PyObject *connections)
{
	PyObject *batch = begin_batch(self, count, connections);
	/* A copy of its own, so that a view of it can never show other data. */
	PyObject *copied = batch ? copy_payloads(self->pair, batch) : NULL;

	/* A list of its own, because the caller may take segments out of the other. */
	if (copied && finish_batch(self->pair, batch, copied))
		self->shown = PyList_GetSlice(batch, 0, count);
	if (!self->shown) {
		Py_XDECREF(copied);
		Py_XDECREF(batch);
		return NULL;
	}
	self->copied = copied;
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
	if (!smf_is_open(self))
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
	{ "lend", fast_path_lend, METH_VARARGS, lend_doc },
	{ "release", fast_path_release, METH_NOARGS, release_doc },
	{ "send", fast_path_send, METH_NOARGS, send_doc },
	{ "show", fast_path_show, METH_VARARGS, show_doc },
	{ 0 }
};

PyTypeObject smf_fast_path_type = {
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

/* A ring: the class, and where its instances have what is looked at here. */
static struct {
	PyTypeObject *type;
	Py_ssize_t after_send, attention, connections, fast, starved;
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
	    !has_only_to_exchange(args[0]))
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
	{ 0 }
};

int smf_init_exchange(PyObject *module)
{
	const struct smf_name names[] = {
		{ "_interrupted", &name_interrupted },
		{ "_complete", &name_complete },
		{ 0 }
	};

	port_closed = smf_import("stackmap.errors", "port_closed");
	if (!port_closed || smf_intern_names(names) || PyModule_AddType(module, &smf_fast_path_type))
		return -1;
	return PyModule_AddFunctions(module, functions);
}
