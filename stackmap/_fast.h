/* SPDX-License-Identifier: GPL-2.0 */
/* Declarations that the parts of the extension stackmap._fast share. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <stdint.h>

struct segment {
	PyObject_HEAD
	PyObject *connection;
	PyObject *view;		/* NULL: nobody has asked for it */
	PyObject *event;
	int err;
	PyObject *source;	/* to make the view of: one of the whole batch, or a page */
	const char *payload;	/* as long as there is a source */
	Py_ssize_t len;
};

extern PyTypeObject smf_segment_type;
extern PyObject *smf_no_event;	/* Event.NONE */

void smf_fill_segment(struct segment *self, PyObject *connection, PyObject *source,
		      const char *payload, Py_ssize_t len);
struct segment *smf_make_segment(PyObject *connection, PyObject *batch, const char *payload,
				 Py_ssize_t len);
bool smf_release_view(struct segment *self);
bool smf_are_segments(PyObject *const *objects, Py_ssize_t count);
int smf_get_payload(struct segment *segment, Py_buffer *payload);

struct fast_path {
	PyObject_HEAD
	struct smr_pair *pair;
	PyObject *owner;	/* of pair's memory */
	PyObject *aside;	/* pages that are in use after their exchange, a dictionary */
	PyObject *copied;	/* payloads of shown, a bytes object; NULL if there are none */
	PyObject *shown;	/* the last batch, until it is taken back */
	int unseen;		/* slots received by an exchange that a signal's handler ended */
};

extern PyTypeObject smf_fast_path_type;

bool smf_is_open(const struct fast_path *self);

/* Where one connection writes. */
struct outlet {
	PyObject_HEAD
	struct fast_path *path;
	uint32_t id;
	unsigned long long written;
};

extern PyTypeObject smf_outlet_type;

struct outlet *smf_usual_outlet(PyObject *connection);
size_t smf_put(struct outlet *outlet, const Py_buffer *data);

struct smr_segment;

extern PyTypeObject smf_lent_type;

struct segment *smf_lend(struct fast_path *lender, PyObject *connection,
			 const struct smr_segment *slot);
bool smf_is_lent(const struct segment *segment);
bool smf_release_segment(struct segment *segment);
int smf_forward_lent(struct segment *segment, struct outlet *to);

/* A connection on a ring: the class, and where its instances have what is looked at here. */
struct ring_connection {
	PyTypeObject *type;
	Py_ssize_t waiting, shutdown, outlet, failure, deaf, copy_max;
};

extern struct ring_connection smf_ring_connection;

PyObject *smf_rest_of(PyObject *data, Py_ssize_t taken, Py_ssize_t len);
PyObject *smf_write_as_usual(PyObject *connection, PyObject *data);
PyObject *smf_write_all_as_usual(PyObject *connection, PyObject *parts);

/*
 * A method of a Python class that C carries out in the usual case.  The Python method, which it
 * decorates, is called in every other, and is what documents it.
 */
struct smf_method {
	PyObject_HEAD
	vectorcallfunc call;
	PyObject *general;		/* the Python method */
	int (*learn)(PyTypeObject *owner);	/* the class that it is defined in */
};

extern PyTypeObject smf_method_type;

PyObject *smf_make_method(PyObject *general, vectorcallfunc call, int (*learn)(PyTypeObject *owner));

PyObject *smf_finish_in_python(PyObject *general, PyObject *object, PyObject *left);

/*
 * Where the instances of a class have one of its __slots__: the usual case looks at them without an
 * attribute's look-up.
 */
struct smf_slot {
	const char *name;
	Py_ssize_t *offset;
};

int smf_find_slots(PyTypeObject *owner, const struct smf_slot *slots);

/* Borrowed; NULL if it is not set. */
static inline PyObject *smf_slot(PyObject *object, Py_ssize_t offset)
{
	return *(PyObject **)((char *)object + offset);
}

/* Takes over the reference to value. */
static inline void smf_set_slot(PyObject *object, Py_ssize_t offset, PyObject *value)
{
	PyObject **slot = (PyObject **)((char *)object + offset);

	Py_XSETREF(*slot, value);
}

static inline bool smf_is_zero(PyObject *number)
{
	return number && PyLong_CheckExact(number) && !Py_SIZE(number);
}

/* Strings that are names, made once. */
struct smf_name {
	const char *name;
	PyObject **string;
};

int smf_learn_nothing(PyTypeObject *owner);

/* Import a name from another module of the package. */
PyObject *smf_import(const char *module, const char *name);

int smf_intern_names(const struct smf_name *names);

PyObject *smf_raise(PyObject *error);
PyObject *smf_take_error(void);
bool smf_ends_program(PyObject *error);
PyObject *smf_report(PyObject *object, PyObject *name, PyObject *error);

int smf_deliver(PyObject *const *segments, Py_ssize_t count, PyObject *stranger,
		Py_ssize_t *delivered);

int smf_init_segment(PyObject *module);
int smf_init_lent(PyObject *module);
int smf_init_exchange(PyObject *module);
int smf_init_write(PyObject *module);
int smf_init_forward(PyObject *module);
int smf_init_transport(PyObject *module);
int smf_init_turn(PyObject *module);
int smf_init_callback(PyObject *module);
