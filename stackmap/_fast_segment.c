// SPDX-License-Identifier: GPL-2.0
/*
 * Segments: the objects that an exchange gives to Python, one for each payload or event.
 *
 * Those of a batch whose payloads were copied share a view of all of it.
 */
#include "_fast.h"

#include <structmember.h>

PyObject *smf_no_event;
static PyObject *view_release;		/* memoryview.release */
static PyObject *released_view;
static PyObject *broken;		/* of stackmap.errors */

/* Fill in a new segment of payload, whose view is made of source when somebody asks for it. */
void smf_fill_segment(struct segment *self, PyObject *connection, PyObject *source,
		      const char *payload, Py_ssize_t len)
{
	self->connection = Py_NewRef(connection);
	self->view = NULL;
	self->event = Py_NewRef(smf_no_event);
	self->err = 0;
	self->source = Py_NewRef(source);
	self->payload = payload;
	self->len = len;
}

/* A segment of payload that was copied with others of its batch. */
struct segment *smf_make_segment(PyObject *connection, PyObject *batch, const char *payload,
				 Py_ssize_t len)
{
	struct segment *self = PyObject_GC_New(struct segment, &smf_segment_type);

	if (!self)
		return NULL;
	smf_fill_segment(self, connection, batch, payload, len);
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
	Py_CLEAR(self->source);
	Py_SETREF(self->event, Py_NewRef(event));
	return 0;
}

static int segment_traverse(PyObject *object, visitproc visit, void *arg)
{
	struct segment *self = (struct segment *)object;

	Py_VISIT(self->connection);
	Py_VISIT(self->view);
	Py_VISIT(self->event);
	Py_VISIT(self->source);
	return 0;
}

static int segment_clear(PyObject *object)
{
	struct segment *self = (struct segment *)object;

	Py_CLEAR(self->connection);
	Py_CLEAR(self->view);
	Py_CLEAR(self->event);
	Py_CLEAR(self->source);
	return 0;
}

static void segment_dealloc(PyObject *object)
{
	PyObject_GC_UnTrack(object);
	segment_clear(object);
	Py_TYPE(object)->tp_free(object);
}

/* Release the view.  False, with an exception, if it is in use. */
bool smf_release_view(struct segment *self)
{
	PyObject *done;

	if (!self->view) {
		self->view = Py_NewRef(released_view);
		Py_CLEAR(self->source);
		return true;
	}
	done = PyObject_Vectorcall(view_release, &self->view, 1, NULL);
	Py_XDECREF(done);
	return done;
}

static PyObject *make_view(const struct segment *self)
{
	Py_ssize_t start;

	if (!PyMemoryView_Check(self->source))
		return PyMemoryView_FromObject(self->source);
	start = self->payload - (const char *)PyMemoryView_GET_BUFFER(self->source)->buf;
	return PySequence_GetSlice(self->source, start, start + self->len);
}

static PyObject *segment_view(PyObject *object, void *ignored)
{
	struct segment *self = (struct segment *)object;

	(void)ignored;
	if (!self->view && self->source) {
		self->view = make_view(self);
		if (self->view)
			Py_CLEAR(self->source);
	} else if (!self->view) {
		smf_release_view(self);	/* the garbage collector has cleared it */
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
	return smf_release_view((struct segment *)object) ? Py_NewRef(Py_None) : NULL;
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
	if (self->source)
		return PyBytes_FromStringAndSize(self->payload, self->len);
	return PyBytes_FromObject(self->view ? self->view : released_view);
}

/* The payload of a segment, to be released with PyBuffer_Release(). */
int smf_get_payload(struct segment *self, Py_buffer *payload)
{
	if (self->source)
		return PyBuffer_FillInfo(payload, (PyObject *)self, (char *)self->payload,
					 self->len, true, PyBUF_SIMPLE);
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

int smf_init_segment(PyObject *module)
{
	PyObject *event = smf_import("stackmap._event", "Event");

	smf_no_event = event ? PyObject_GetAttrString(event, "NONE") : NULL;
	Py_XDECREF(event);
	broken = smf_import("stackmap.errors", "broken");
	view_release = PyObject_GetAttrString((PyObject *)&PyMemoryView_Type, "release");
	released_view = make_released_view();
	if (!smf_no_event || !broken || !view_release || !released_view)
		return -1;
	return PyModule_AddType(module, &smf_segment_type);
}
